/**
 * Tests names of models against a list in which `*` stands for any characters. No regular expressions: a list of stars
 * would make them try every way of cutting a name into pieces.
 */
export function allowList(patterns: readonly string[]): (name: string) => boolean {
  const names = new Set(patterns.filter(pattern => !pattern.includes('*')))
  const globs = patterns.filter(pattern => pattern.includes('*')).map(glob)
  return name => names.has(name) || globs.some(fits => fits(name))
}

function glob(pattern: string): (name: string) => boolean {
  const [first = '', ...rest] = pattern.split('*')
  const last = rest.pop() ?? ''
  return name => {
    const end = name.length - last.length
    if (end < first.length || !name.startsWith(first) || !name.endsWith(last)) return false
    let at = first.length
    for (const part of rest) {
      const found = name.indexOf(part, at)
      if (found < 0 || found + part.length > end) return false
      at = found + part.length
    }
    return true
  }
}
