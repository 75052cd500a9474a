/** Memory of the runs of pages that are being sent: whoever takes a run gives its memory back when it has been sent. */
import { BufferPool } from '@lakebase/bytes';

export const runMemory: BufferPool = new BufferPool();
