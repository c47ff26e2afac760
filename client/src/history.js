/**
 * The latest events of a shared stream.
 * @module
 */

/** @import { Update } from "./internals.js" */

/** Events that each tab keeps, for tabs that have missed some. */
const MAX_EVENTS = 1_000;

/** Return a bounded list of events, by id. Ids are opaque: they are looked up, never compared. */
export function createHistory() {
  /** @type {Map<string | undefined, Update>} in order */
  const updates = new Map();

  return {
    /** @param {string | undefined} id */
    has: (id) => updates.has(id),

    /**
     * @param {string} id
     * @param {Update} update
     */
    add(id, update) {
      updates.set(id, update);
      if (updates.size > MAX_EVENTS) updates.delete(updates.keys().next().value);
    },

    /**
     * Return the events after an id, or undefined if the first of them is no longer here.
     * @param {string} id
     */
    after(id) {
      const all = [...updates.values()];
      const index = all.findIndex(({ previousId }) => previousId === id);
      return index < 0 ? undefined : all.slice(index);
    },
  };
}
