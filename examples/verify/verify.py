"""Checks that an answer is as the gateway signed it. docs/plugins/signing.md says what is signed."""
import decimal, hmac, json, re


# RFC 8785. Every number is a float, as in JavaScript: Python knows the same digits, and puts the point elsewhere.
def canonical(value):
    if isinstance(value, float) and value and not 1e-6 <= abs(value) < 1e21: return repr(value).replace("e-0", "e-")
    if isinstance(value, float): return format(decimal.Decimal(repr(value + 0.0)).normalize(), "f")
    if isinstance(value, list): return "[" + ",".join(map(canonical, value)) + "]"
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(canonical(name) + ":" + canonical(value[name]) for name in names) + "}"
    return re.sub("[\ud800-\udfff]", lambda half: "\\u%04x" % ord(half[0]), json.dumps(value, ensure_ascii=False))


def fits(secret, given, text):
    expected = hmac.new(secret.encode(), text.encode(), "sha256").hexdigest()
    return isinstance(given, str) and given.isascii() and hmac.compare_digest(expected, given)


# A whole answer, the text of its body. Raises ValueError for what is no JSON, AttributeError or TypeError for JSON that is no object.
def verify_answer(body, secret):
    answer = json.loads(body, parse_int=float)
    return fits(secret, answer.pop("signature", None), canonical(answer))


# A streamed answer, the text of all its server-sent events: "valid", "forged" or "truncated". Raises as above.
def verify_stream(body, secret):
    count, previous, final = 0, "", None
    for event in body.split("\n\n")[:-1]:
        if event == "data: [DONE]" and final is None: break
        if re.fullmatch(r"(:[^\r\n]*|data: \[DONE\])?", event): continue
        if final is not None or not re.fullmatch(r"data: [^\r\n]*", event): return "forged"
        chunk = json.loads(event[6:], parse_int=float)
        count, signature, final = count + 1, chunk.pop("x_signature", None), chunk.pop("x_signature_final", None)
        if signature is None and "error" in chunk: return "truncated"
        if not fits(secret, signature, f"{count}\n{previous}\n{canonical(chunk)}"): return "forged"
        previous = signature
    if final is None or not body.endswith("\n\n"): return "truncated"
    return "valid" if fits(secret, final, f"final\n{count}\n{previous}") else "forged"
