import {
  OptionalKind,
  type Static,
  type TArray,
  type TBoolean,
  type TLiteral,
  type TObject,
  type TOptional,
  type TProperties,
  type TRecord,
  type TSchema,
  type TString,
  type TTransform,
  type TUnion,
  Type
} from '@sinclair/typebox'

// What the configuration is made of. Every schema here may carry `allowed`, what a fault says in place of a description
// made from the schema, and `hidden`, for values that no fault may show.

/** Marks a key with a default: optional as written, always there in the settings. */
export const Preset = Symbol('preset')
/** Marks a feature that is `false`, `true` (its defaults) or an object. */
export const Toggle = Symbol('toggle')

export type TPreset<S extends TSchema> = TOptional<S> & { [Preset]: true }
export type TToggle<O extends TSchema> = TUnion<[TBoolean, O]> & { [Toggle]: O }

/** What reading makes of a schema: defaults filled in, transforms decoded, a toggle is `false` or its object. */
export type Filled<S> =
  S extends TTransform<infer _Written, infer Decoded>
    ? Decoded
    : S extends { [Toggle]: infer Options }
      ? false | Filled<Options>
      : S extends TObject<infer Properties>
        ? FilledProperties<Properties>
        : S extends TRecord<infer _Name, infer Value>
          ? { [name: string]: Filled<Value> }
          : S extends TArray<infer Item>
            ? Filled<Item>[]
            : S extends TUnion<infer Branches>
              ? { [Index in keyof Branches]: Filled<Branches[Index]> }[number]
              : S extends TSchema
                ? Static<S>
                : never

type OpenKeys<Properties extends TProperties> = {
  [Key in keyof Properties]: Properties[Key] extends { [Preset]: true }
    ? never
    : Properties[Key] extends TOptional<TSchema>
      ? Key
      : never
}[keyof Properties]

type FilledProperties<Properties extends TProperties> = Flat<
  { [Key in Exclude<keyof Properties, OpenKeys<Properties>>]: Filled<Properties[Key]> } & {
    [Key in OpenKeys<Properties>]?: Filled<Properties[Key]>
  }
>

type Flat<Type> = { [Key in keyof Type]: Type[Key] }

/** A key with a default. The default is given as a user would write it: '5s', not 5000. */
export function preset<S extends TSchema>(schema: S, value: Static<S>): TPreset<S> {
  return { ...schema, default: value, [OptionalKind]: 'Optional', [Preset]: true }
}

/** An object that knows all its keys. */
export function closed<P extends TProperties>(properties: P, options: { hidden?: boolean } = {}): TObject<P> {
  return Type.Object(properties, { ...options, additionalProperties: false })
}

/** `false`, `true` or the object `options`; `on` is the default. */
export function toggle<O extends TSchema>(options: O, on: boolean): TPreset<TToggle<O>> {
  const schema = Type.Union([Type.Boolean(), options], { allowed: 'true, false or an object' })
  return { ...schema, default: on, [Toggle]: options, [OptionalKind]: 'Optional', [Preset]: true }
}

/** One of several words. */
export function oneOf<const Words extends string[]>(...words: Words): TUnion<TLiteral<Words[number]>[]> {
  return Type.Union(words.map(word => Type.Literal(word)))
}

/** The same as one plain rule that says what it allows, for checks that describe no unions. */
export function word<const Word extends string>(words: readonly Word[]) {
  return Type.Unsafe<Word>({ type: 'string', enum: [...words], allowed: `one of ${words.join(', ')}` })
}

/** A map from names of one pattern to values; `names` says in a fault what a name may be. */
export function named<V extends TSchema>(
  pattern: string,
  names: string,
  value: V,
  options: { hidden?: boolean } = {}
): TRecord<TString, V> {
  return Type.Record(Type.String({ pattern }), value, { ...options, names, additionalProperties: false })
}

/** A text of one pattern; `allowed` says in a fault what it may be. */
export function text(pattern: string, allowed: string, options: { hidden?: boolean } = {}): TString {
  return Type.String({ ...options, pattern, allowed })
}
