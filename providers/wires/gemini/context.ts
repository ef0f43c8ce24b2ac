import type { Media } from '../../media.ts'
import type { Family } from './models.ts'
import type { Signatures } from './signatures.ts'

/** What differs between the vendors that speak this wire. */
export interface Surface {
  /** Whether the vendor reads what stands at this address by itself. */
  readonly opens: (url: string) => boolean
  /** Whether calls and results carry their ids; Vertex goes by their order. */
  readonly callIds: boolean
  /** Whether the body may name a service tier. */
  readonly serviceTier: boolean
  readonly safetySettings?: ReadonlyArray<{ readonly category: string; readonly threshold: string }>
}

/** What one request needs besides itself. */
export interface Known {
  readonly signatures: Pick<Signatures, 'find'>
  /** What stands at the links of the request, by their address. */
  readonly media?: ReadonlyMap<string, Media>
}

export interface Part {
  text?: string
  thoughtSignature?: string
  inlineData?: Media
  fileData?: { fileUri: string; mimeType?: string }
  functionCall?: { id?: string; name: string; args: object }
  functionResponse?: { id?: string; name: string; response: object }
}

/** What one request is translated with. */
export interface Context extends Surface, Known {
  readonly family: Family
  readonly warn: (text: string) => void
}
