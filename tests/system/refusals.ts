/** What the HTTP cases share: hostile ids, and a check that every answer is a refusal in our envelope, without anything of our inside. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Cluster } from '@lakebase/testkit';
import { type HttpAsk, http } from './raw-client.ts';

export const API = '/api/2.0/postgres';
export const BRANCH = `${API}/projects/default/branches/production`;
export const TRICKS = [
  '..',
  '%2e%2e',
  '..%2f..%2f..%2fetc%2fpasswd',
  '%2e%2e%2f%2e%2e%2fsecret',
  '%00',
  'a%00b',
  '....',
  '%c0%ae%c0%ae',
  '%F0%9F%92%A9',
  'a'.repeat(150),
  '*',
  '%27%3B--',
  'CON',
  '__proto__',
  'constructor',
];

export interface Case {
  readonly what: string;
  readonly path: string;
  readonly ask?: HttpAsk;
  readonly expect?: RegExp;
}

/** Sends all, and says which were not refused with an envelope. */
export async function refusals(port: number, token: string | undefined, cases: readonly Case[], expected = /^4\d\d$/): Promise<string[]> {
  const wrong: string[] = [];
  for (const { what, path, ask, expect } of cases) {
    try {
      const answer = await http(port, path, { token, ...ask });
      const body = envelope(answer.text);
      if (
        !(expect ?? expected).test(String(answer.status)) ||
        body === undefined ||
        /\bat \S+ \(|node_modules|\/work\/|\.ts:/.test(answer.text)
      )
        wrong.push(`${what}: ${answer.status} ${answer.text.slice(0, 200)}`);
    } catch (error) {
      wrong.push(`${what}: ${String(error)}`);
    }
  }
  return wrong;
}

function envelope(text: string): { error_code: string; message: string } | undefined {
  try {
    const body = JSON.parse(text) as { error_code?: unknown; message?: unknown };
    return typeof body.error_code === 'string' && typeof body.message === 'string' && body.message !== ''
      ? (body as { error_code: string; message: string })
      : undefined;
  } catch {
    return undefined;
  }
}

export const post = (body: unknown, method = 'POST'): HttpAsk => ({ method, body: typeof body === 'string' ? body : JSON.stringify(body) });
export const nested = (depth: number): string => `${'{"a":'.repeat(depth)}1${'}'.repeat(depth)}`;

export const adminToken = (cluster: Cluster): string => readFileSync(join(cluster.home, 'admin-token'), 'utf8').trim();

export function portOf(cluster: Cluster, service: string): number {
  return (JSON.parse(readFileSync(join(cluster.home, 'config', `${service}.json`), 'utf8')) as { httpPort: number }).httpPort;
}
