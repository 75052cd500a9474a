/** Bodies of answers: exactly as long as announced, or UNAVAILABLE. */
import type { Readable } from 'node:stream';
import { LakebaseError } from '@lakebase/base';

const wrongLength = (what: string, found: number, length: number): LakebaseError =>
  new LakebaseError('UNAVAILABLE', `${what}: ${found} bytes came, ${length} were announced`);

export async function readBody(body: Readable, length: number, what: string, signal?: AbortSignal): Promise<Buffer> {
  const bytes = Buffer.allocUnsafeSlow(length);
  let filled = 0;
  const stop = (): void => void body.destroy(new LakebaseError('UNAVAILABLE', `${what}: the call was ended`));
  if (signal?.aborted === true) stop();
  signal?.addEventListener('abort', stop, { once: true });
  try {
    for await (const chunk of body as AsyncIterable<Buffer>) {
      if (filled + chunk.length > length) throw wrongLength(what, filled + chunk.length, length);
      chunk.copy(bytes, filled);
      filled += chunk.length;
    }
  } finally {
    signal?.removeEventListener('abort', stop);
    body.destroy();
  }
  if (filled !== length) throw wrongLength(what, filled, length);
  return bytes;
}

/** Passes the chunks on and fails where there are not exactly `length` bytes. `translate` makes an error ours. */
export async function* checkedBody(
  body: Readable,
  length: number,
  what: string,
  translate: (error: unknown) => Error,
): AsyncGenerator<Buffer> {
  let passed = 0;
  try {
    for await (const chunk of body as AsyncIterable<Buffer>) {
      passed += chunk.length;
      if (passed > length) throw wrongLength(what, passed, length);
      yield chunk;
    }
    if (passed !== length) throw wrongLength(what, passed, length);
  } catch (error) {
    throw translate(error);
  } finally {
    body.destroy();
  }
}
