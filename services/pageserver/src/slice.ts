/** How long this service works without a turn of the event loop: what one branch adds to the reads of every other. */
export const SLICE_MS = 1;
