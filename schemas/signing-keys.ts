import { createPrivateKey, createPublicKey, type JsonWebKeyInput, type KeyObject } from 'node:crypto'
import { fieldsOf, jsonOf } from './json.ts'

// Ed25519 keys as an operator writes them: PEM, of which a variable may hold the line ends as `\n`, or a JWK.

/** @throws TypeError for anything else; it shows nothing of what was written */
export function privateKeyOf(text: string): KeyObject {
  return ed25519(() => {
    const jwk = jwkOf(text)
    return jwk === null ? createPrivateKey(pemOf(text)) : createPrivateKey({ key: jwk, format: 'jwk' })
  }, 'private')
}

/** Never a private key: what is published is not worth the risk of a mistake. @throws TypeError as above */
export function publicKeyOf(text: string): KeyObject {
  return ed25519(() => {
    const jwk = jwkOf(text)
    if (jwk === null ? text.includes('PRIVATE') : jwk['d'] !== undefined) throw new TypeError('It is private.')
    return jwk === null ? createPublicKey(pemOf(text)) : createPublicKey({ key: jwk, format: 'jwk' })
  }, 'public')
}

function ed25519(read: () => KeyObject, kind: string): KeyObject {
  let key: KeyObject
  try {
    key = read()
  } catch {
    throw new TypeError(`This is no ${kind} key, neither in PEM nor as a JWK.`)
  }
  if (key.asymmetricKeyType !== 'ed25519') throw new TypeError(`This is no ${kind} key of the kind Ed25519.`)
  return key
}

function jwkOf(text: string): JsonWebKeyInput['key'] | null {
  return text.trimStart().startsWith('{') ? { ...fieldsOf(jsonOf(text)) } : null
}

function pemOf(text: string): string {
  return text.replaceAll('\\n', '\n')
}
