export interface Room {
  /** The most calls at a time. */
  readonly concurrency: number
  /** How many may wait for a place, and for how many milliseconds. */
  readonly queue: { readonly size: number; readonly timeout: number }
}

/** A call that waits for a place. */
type Admit = () => void

/** The calls that a target answers at a time, and those that wait for their turn. While somebody waits no place is free. */
export class Places {
  /** Places that are taken. */
  taken = 0
  #room: Room | null = null
  #waiting: Admit[] = []

  /** Null: as many as come. May change while calls run and wait. */
  get room(): Room | null {
    return this.#room
  }

  set room(room: Room | null) {
    this.#room = room
    this.#admit()
  }

  get waiting(): number {
    return this.#waiting.length
  }

  /** Takes a place, if there is one. */
  enter(): boolean {
    const room = this.#room
    if (room !== null && this.taken >= room.concurrency) return false
    this.taken++
    return true
  }

  /** Waits for a place: whether one was taken in time. One that is taken has to be given back, wanted or not. */
  queue(signal: AbortSignal): Promise<boolean> {
    if (this.enter()) return Promise.resolve(true)
    const room = this.#room
    if (room === null || this.#waiting.length >= room.queue.size || signal.aborted) return Promise.resolve(false)
    return new Promise(resolve => {
      const admit = () => end(true)
      const leave = () => {
        this.#waiting.splice(this.#waiting.indexOf(admit), 1)
        end(false)
      }
      const end = (admitted: boolean) => {
        clearTimeout(timer)
        signal.removeEventListener('abort', leave)
        resolve(admitted)
      }
      const timer = setTimeout(leave, room.queue.timeout)
      signal.addEventListener('abort', leave)
      this.#waiting.push(admit)
    })
  }

  /** Gives a place back: to the one who has waited longest, if it is still wanted. */
  leave(): void {
    this.taken--
    if (this.#waiting.length > 0) this.#admit()
  }

  #admit(): void {
    while (this.#waiting.length > 0 && this.enter()) this.#waiting.shift()?.()
  }
}
