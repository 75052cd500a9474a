/** PUT of binary bodies to the pageserver. */
import { LakebaseError } from '@lakebase/base';

const UPLOAD_MS = 60_000;

export async function putBinary(url: string, token: string, body: Buffer): Promise<void> {
  const response = await fetch(url, {
    method: 'PUT',
    body: new Uint8Array(body),
    headers: { authorization: `Bearer ${token}`, 'content-type': 'application/octet-stream' },
    signal: AbortSignal.timeout(UPLOAD_MS),
  });
  const text = await response.text();
  if (!response.ok) throw new LakebaseError('UNAVAILABLE', `PUT ${url}: HTTP ${response.status} ${text.slice(0, 300)}`);
}
