/** The public API as the CLI uses it: personal access token from the home directory, its error envelope, operations awaited. */
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { Readable } from 'node:stream';
import { LakebaseError, sleep } from '@lakebase/base';
import { HTTP_PORT, type Home, portFromEnv, readPorts } from './home.ts';

export type Json = Record<string, unknown>;
const OPERATION_MS_MAX = 120_000;

export class ApiCallError extends LakebaseError {
  readonly errorCode: string;

  constructor(status: number, errorCode: string, message: string) {
    super(status === 404 ? 'NOT_FOUND' : status === 401 ? 'UNAUTHENTICATED' : status >= 500 ? 'UNAVAILABLE' : 'INVALID_ARGUMENT', message);
    this.errorCode = errorCode;
  }
}

export class ApiClient {
  readonly #baseUrl: string;
  readonly #headers: Readonly<Record<string, string>>;

  constructor(baseUrl: string, headers: Readonly<Record<string, string>>) {
    this.#baseUrl = baseUrl.replace(/\/$/, '');
    this.#headers = headers;
  }

  /** The same caller in another workspace of the account. */
  inWorkspace(id: string): ApiClient {
    return new ApiClient(this.#baseUrl, { ...this.#headers, 'x-databricks-org-id': id });
  }

  static fromHome(home: Home, env: NodeJS.ProcessEnv): ApiClient {
    const port =
      env.LAKEBASE_HTTP_PORT !== undefined ? portFromEnv(env, 'LAKEBASE_HTTP_PORT', HTTP_PORT) : (readPorts(home)?.httpPort ?? HTTP_PORT);
    const url = env.LAKEBASE_API_URL ?? `http://127.0.0.1:${port}`;
    let token = env.LAKEBASE_TOKEN ?? '';
    if (token === '') {
      try {
        token = readFileSync(home.adminTokenFile, 'utf8').trim();
      } catch (cause) {
        throw new LakebaseError('CONFIG', `no Lakebase in ${home.dir}: run "lakebase up" there, or set LAKEBASE_HOME`, { cause });
      }
    }
    return new ApiClient(url, { authorization: `Bearer ${token}` });
  }

  async call<T = Json>(method: string, path: string, body?: unknown, timeoutMs = 30_000): Promise<T> {
    let response: Response;
    let text: string;
    try {
      response = await fetch(`${this.#baseUrl}/api/2.0/${path}`, {
        method,
        headers: { ...this.#headers, ...(body === undefined ? {} : { 'content-type': 'application/json' }) },
        ...(body === undefined ? {} : { body: JSON.stringify(body) }),
        signal: AbortSignal.timeout(timeoutMs),
      });
      text = await response.text();
    } catch (cause) {
      throw new LakebaseError(
        'UNAVAILABLE',
        `Lakebase does not answer at ${this.#baseUrl}: is it running? Start it with "lakebase up" or npm start`,
        { cause },
      );
    }
    const parsed = parse(text);
    if (!response.ok) throw new ApiCallError(response.status, textOf(parsed.error_code), textOf(parsed.message, `HTTP ${response.status}`));
    return parsed as T;
  }

  /** Lines of a long answer as they come. */
  async *lines(path: string): AsyncGenerator<string> {
    const response = await fetch(`${this.#baseUrl}/api/2.0/${path}`, { headers: this.#headers });
    if (!response.ok || response.body === null) {
      const error = parse(await response.text());
      throw new ApiCallError(response.status, textOf(error.error_code), textOf(error.message, `HTTP ${response.status}`));
    }
    yield* createInterface({ input: Readable.fromWeb(response.body as Parameters<typeof Readable.fromWeb>[0]) });
  }

  get<T = Json>(path: string): Promise<T> {
    return this.call<T>('GET', `postgres/${path}`);
  }

  /** Starts an operation and waits until it is done. Returns its response, and what its metadata says once (a new password). */
  async run(method: string, path: string, body?: unknown): Promise<{ response: Json; metadata: Json }> {
    let operation = await this.call(method, `postgres/${path}`, body);
    const metadata = (operation.metadata ?? {}) as Json;
    const deadline = Date.now() + OPERATION_MS_MAX;
    for (let wait = 20; operation.done !== true; wait = Math.min(500, wait * 1.5)) {
      if (Date.now() > deadline) throw new LakebaseError('TIMEOUT', `still going on: ${String(operation.name)}`);
      await sleep(wait);
      operation = await this.get(String(operation.name));
    }
    if (operation.error !== undefined) {
      const error = operation.error as { error_code: string; message: string };
      throw new ApiCallError(400, error.error_code, error.message);
    }
    return { response: (operation.response ?? {}) as Json, metadata };
  }

  /** All pages of a list. */
  async list(path: string, field: string): Promise<Json[]> {
    const out: Json[] = [];
    let token = '';
    do {
      const page = await this.get(`${path}${token === '' ? '' : `?page_token=${encodeURIComponent(token)}`}`);
      out.push(...((page[field] ?? []) as Json[]));
      token = textOf(page.next_page_token);
    } while (token !== '');
    return out;
  }
}

export const textOf = (value: unknown, otherwise = ''): string =>
  typeof value === 'string' || typeof value === 'number' ? String(value) : otherwise;

function parse(text: string): Json {
  try {
    return JSON.parse(text) as Json;
  } catch {
    return { message: text.slice(0, 200) };
  }
}
