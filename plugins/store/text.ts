/** A text that both databases can hold: what is no Unicode, and NUL, become U+FFFD. */
export function storable(text: string): string {
  const whole = text.isWellFormed() ? text : text.toWellFormed()
  return whole.includes('\0') ? whole.replaceAll('\0', '\ufffd') : whole
}

/** Whether a text is stored as it is; one that is not is nobody's id. */
export function isStorable(text: string): boolean {
  return !text.includes('\0') && text.isWellFormed()
}
