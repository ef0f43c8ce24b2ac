import type { Database } from './database.ts'

/** The value of a setting, which is stored if there is none yet; of several processes at once one wins. */
export async function setting(database: Database, name: string, value: string): Promise<string> {
  const read = () => database.all('SELECT value FROM settings WHERE name = ?', [name])
  let [row] = await read()
  if (row === undefined) {
    await database.run('INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT (name) DO NOTHING', [name, value])
    ;[row] = await read()
  }
  return String(row?.['value'])
}
