import { detail, InvalidRequest } from '../../../schemas/errors.ts'
import { isRecord } from '../../../schemas/reader.ts'

type Schema = { [keyword: string]: unknown }

/** Keywords of `responseJsonSchema`: those that hold a value, one schema, a list of schemas, schemas by name. */
const values = new Set([
  ...['$id', '$ref', '$anchor', 'type', 'format', 'title', 'description', 'enum', 'minItems', 'maxItems'],
  ...['minimum', 'maximum', 'required', 'propertyOrdering']
])
const schemas = new Set(['items', 'additionalProperties'])
const lists = new Set(['prefixItems', 'anyOf', 'oneOf'])
const maps = new Set(['properties', '$defs', 'definitions'])
/** They say nothing of what is valid. */
const remarks = new Set(['$schema', '$comment'])
const deepest = 100

/**
 * A JSON Schema in the subset that Gemini takes (Google's documentation of `responseJsonSchema`).
 * @param dropped gets the names of the keywords that had to be left out
 * @throws InvalidRequest for one nested too deep
 */
export function responseSchema(schema: Schema, dropped: Set<string>, depth = 0): Schema {
  if (depth > deepest) {
    const message = `The schema is nested deeper than ${deepest} levels.`
    throw detail(new InvalidRequest(message), { param: 'response_format.json_schema.schema' })
  }
  const inner = (value: unknown) => (isRecord(value) ? responseSchema(value, dropped, depth + 1) : value)
  const result: Schema = {}
  for (const keyword in schema) {
    const value = schema[keyword]
    if (keyword === '$ref' && typeof value === 'string') result['$ref'] = value.replace(/^#\/definitions\//, '#/$defs/')
    else if (values.has(keyword)) result[keyword] = value
    else if (keyword === 'const') result['enum'] = [value]
    else if (schemas.has(keyword)) result[keyword] = inner(value)
    else if (lists.has(keyword) && Array.isArray(value)) result[keyword] = value.map(inner)
    else if (maps.has(keyword) && isRecord(value)) {
      const named = Object.fromEntries(Object.entries(value).map(([name, each]) => [name, inner(each)]))
      // The older name of `$defs`, which Gemini does not know.
      const known = keyword === 'properties' ? keyword : '$defs'
      result[known] = isRecord(result[known]) ? { ...result[known], ...named } : named
    } else if (!remarks.has(keyword)) dropped.add(keyword)
  }
  return result
}
