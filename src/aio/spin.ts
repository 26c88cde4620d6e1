/**
 * Whether it pays to look once more before going to sleep.
 *
 * A client that sends its next request when it has seen the reply is back within some tens of microseconds, and waking
 * a sleeping loop costs more than that. Looking in vain is punished: the next looks are left out, twice as many each
 * time, so that a slow client costs next to nothing.
 */

const SPIN_MS = 0.05;
const HOLD_OFF_MIN = 2;
const HOLD_OFF_MAX = 1024;

export class Spinner {
  #holdOff = 0;
  #next = HOLD_OFF_MIN;

  /** Calls `look` until it returns true or the time is over; returns whether it did. May not try at all. */
  spin(look: () => boolean): boolean {
    if (this.#holdOff > 0) {
      this.#holdOff--;
      return false;
    }
    const endMs = performance.now() + SPIN_MS;
    do {
      if (look()) {
        this.#next = HOLD_OFF_MIN;
        return true;
      }
    } while (performance.now() < endMs);
    this.#holdOff = this.#next;
    this.#next = Math.min(this.#next * 2, HOLD_OFF_MAX);
    return false;
  }
}
