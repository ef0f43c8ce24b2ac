/** True for an address or host name that only this machine can reach. */
export function isLoopback(host: string): boolean {
  const name = host.replace(/^\[|\]$/g, '').toLowerCase()
  return name === 'localhost' || name === '::1' || /^(?:::ffff:)?127(?:\.\d{1,3}){3}$/.test(name)
}

/** True when a Host header names this machine; a page that rebinds a name of its own to 127.0.0.1 does not. */
export function isLoopbackHost(header: string | undefined): boolean {
  if (header === undefined) return false
  return isLoopback(header.replace(/:\d{1,5}$/, ''))
}
