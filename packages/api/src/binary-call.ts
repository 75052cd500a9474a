/** HTTP calls whose answers carry key material: octets over node:http, so that every buffer they passed through in this process is ours to
 *  zero. (`fetch` and JSON leave copies in strings that cannot be wiped.)
 *  Invariant: chunks are zeroed as soon as they were copied; the result is one buffer of its own, the caller's to wipe. */
import { request as httpRequest } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { type ErrorCode, LakebaseError } from '@lakebase/base';
import { offHeap } from '@lakebase/bytes';
import { errorFromBody } from './http-client.ts';

export interface BinaryCall {
  readonly baseUrl: string;
  readonly token: string;
  readonly method: string;
  readonly path: string;
  /** A Buffer goes as octets, everything else as JSON. */
  readonly body: unknown;
  readonly bytesMax: number;
  readonly timeoutMs?: number;
}

export function binaryCall(o: BinaryCall): Promise<Buffer> {
  const url = new URL(o.baseUrl + o.path);
  const body = Buffer.isBuffer(o.body) ? o.body : Buffer.from(JSON.stringify(o.body));
  const type = Buffer.isBuffer(o.body) ? 'application/octet-stream' : 'application/json';
  const what = `${o.method} ${o.baseUrl}${o.path}`;
  return new Promise((resolve, reject) => {
    const signal = AbortSignal.timeout(o.timeoutMs ?? 30_000);
    const failed = (cause: unknown): void => {
      const code: ErrorCode = signal.aborted ? 'TIMEOUT' : 'UNAVAILABLE';
      reject(
        cause instanceof LakebaseError
          ? cause
          : new LakebaseError(code, `${what}: ${signal.aborted ? 'no answer in time' : 'cannot connect'}`, { cause }),
      );
    };
    const request = (url.protocol === 'https:' ? httpsRequest : httpRequest)(
      url,
      {
        method: o.method,
        signal,
        headers: { authorization: `Bearer ${o.token}`, 'content-type': type, 'content-length': body.length },
      },
      (response) => {
        const length = Number(response.headers['content-length'] ?? -1);
        if (!Number.isSafeInteger(length) || length < 0 || length > o.bytesMax) {
          response.destroy();
          return failed(new LakebaseError('UNAVAILABLE', `${what}: an answer of ${length} bytes where at most ${o.bytesMax} are right`));
        }
        const result = offHeap(length);
        let at = 0;
        response.on('data', (chunk: Buffer) => {
          at += chunk.copy(result, at);
          chunk.fill(0);
        });
        response.on('error', failed);
        response.on('end', () => {
          if (at !== length) return failed(new LakebaseError('UNAVAILABLE', `${what}: the answer was cut short`));
          if (response.statusCode === 200) return resolve(result);
          reject(errorFromBody(response.statusCode ?? 500, result.toString(), what));
        });
      },
    );
    request.on('error', failed);
    request.end(body);
  });
}
