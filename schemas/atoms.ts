import { Type } from '@sinclair/typebox'
import { text } from './shape.ts'

// The words and numbers that several parts of the configuration share.

export const Flag = Type.Boolean()
export const Words = Type.String({ minLength: 1 })
/** USD, never negative. */
export const Usd = Type.Number({ minimum: 0 })
export const Count = Type.Integer({ minimum: 1 })

/** A credential that travels in a header: printable ASCII without white space, so that no line end of a file sticks to it. */
export const Credential = text('^[\\x21-\\x7e]+$', 'printable ASCII without white space', { hidden: true })

/** A secret of any characters. */
export const Secret = Type.String({ minLength: 1, hidden: true })

/** An http(s) URL without credentials. */
export const Url = Type.Transform(text('^[Hh][Tt][Tt][Pp][Ss]?://\\S+$', 'an http(s) URL without credentials'))
  .Decode(plainUrl)
  .Encode(url => url)

/** An http(s) URL to which paths are appended; slashes at its end are cut. `env:NAME` stays in providers that are off. */
export const BaseUrl = Type.Transform(
  text('^([Hh][Tt][Tt][Pp][Ss]?://[^\\s?#]+|env:\\w+)$', 'an http(s) URL without credentials, query and fragment')
)
  .Decode(written => (written.startsWith('env:') ? written : plainUrl(written).replace(/\/+$/, '')))
  .Encode(url => url)

/** Names of providers: they stand before the slash of `provider/model`. */
export const providerName = '^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$'
/** Names of models and tasks, as a request carries them. */
export const modelName = '^[^\\x00-\\x20\\x7f]{1,256}$'
/** Never one that looks like a key. */
export const tenantName = '^(?!gw_)[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$'

function plainUrl(written: string): string {
  const { username, password } = new URL(written)
  if (username || password) throw new TypeError('credentials in a URL')
  return written
}
