/** A long answer of JSON lines, one at a time as they come. Ends when the far end ends it; throws UNAVAILABLE when the connection breaks. */
import { LakebaseError } from '@lakebase/base';
import { errorFromBody } from './http-client.ts';

/** A snapshot of a hundred thousand projects fits. */
const LINE_BYTES_MAX = 32 * 1024 * 1024;

export interface NdjsonCall {
  readonly baseUrl: string;
  readonly token: string;
  readonly path: string;
  readonly signal: AbortSignal;
}

export async function* ndjson<T>(o: NdjsonCall): AsyncGenerator<T> {
  const what = `GET ${o.baseUrl}${o.path}`;
  let response: Response;
  try {
    response = await fetch(o.baseUrl.replace(/\/$/, '') + o.path, { signal: o.signal, headers: { authorization: `Bearer ${o.token}` } });
  } catch (cause) {
    throw new LakebaseError('UNAVAILABLE', `${what}: cannot connect`, { cause });
  }
  if (!response.ok) throw errorFromBody(response.status, await response.text(), what);
  if (response.body === null) return;
  const decoder = new TextDecoder();
  let rest = '';
  try {
    for await (const chunk of response.body) {
      rest += decoder.decode(chunk, { stream: true });
      if (rest.length > LINE_BYTES_MAX) throw new LakebaseError('CORRUPT', `${what}: a line longer than ${LINE_BYTES_MAX} bytes`);
      for (let at = rest.indexOf('\n'); at >= 0; at = rest.indexOf('\n')) {
        const line = rest.slice(0, at);
        rest = rest.slice(at + 1);
        if (line !== '') yield JSON.parse(line) as T;
      }
    }
  } catch (cause) {
    if (cause instanceof LakebaseError) throw cause;
    throw new LakebaseError('UNAVAILABLE', `${what}: the connection broke`, { cause });
  }
}
