/** Which object store an installation uses: the section `objectStore` of every service's configuration, and its short form as a URL. Pure: nothing
 *  is opened here (open.ts). Invariant: a configuration never holds a secret, only the name of a file that does (credentials.ts). */
import { isAbsolute, resolve } from 'node:path';
import { LakebaseError } from '@lakebase/base';
import { checkObjectKey } from './keys.ts';

interface Common {
  /** One request without a body may take this long; larger ones get time for their bytes on top. Default 10 s. */
  readonly attemptTimeoutMs?: number;
  /** A call, with all its attempts. Default 60 s. */
  readonly deadlineMs?: number;
  /** Requests at a time, reads and writes apart. Defaults 32 and 8. */
  readonly readsMax?: number;
  readonly writesMax?: number;
}
interface Remote extends Common {
  /** In front of every key, without slashes at its ends. */
  readonly prefix?: string;
  readonly endpoint?: string;
  /** File of mode 0600 with credentials; without it, what the provider's SDK finds (environment, profile, role of the machine). */
  readonly credentialsFile?: string;
}
export interface DirectoryConfig extends Common {
  readonly kind: 'directory';
  readonly path: string;
}
export interface S3Config extends Remote {
  readonly kind: 's3';
  readonly bucket: string;
  readonly region?: string;
  /** `http://host/bucket/key` instead of `http://bucket.host/key`. Default: true where an endpoint is named. */
  readonly forcePathStyle?: boolean;
  /** CRC-32 with every upload and check of every download: default true; false for servers that do not know these headers. */
  readonly checksums?: boolean;
}
export interface AzureConfig extends Remote {
  readonly kind: 'azure';
  readonly container: string;
  /** The storage account; its endpoint follows from it unless one is named. */
  readonly account: string;
}
export interface GcsConfig extends Remote {
  readonly kind: 'gcs';
  readonly bucket: string;
}
export type ObjectStoreConfig = DirectoryConfig | S3Config | AzureConfig | GcsConfig;

/** What is wrong with a value, or undefined. */
type Check = (value: unknown) => string | undefined;
interface Field {
  readonly check: Check;
  readonly needed?: true;
  /** Its name in a URL's query. */
  readonly query?: string;
}

const text =
  (pattern: RegExp, what: string): Check =>
  (value) =>
    typeof value === 'string' && pattern.test(value) ? undefined : what;
const whole =
  (min: number, max: number): Check =>
  (value) =>
    Number.isInteger(value) && (value as number) >= min && (value as number) <= max ? undefined : `a whole number from ${min} to ${max}`;
const absolutePath: Check = (value) => (typeof value === 'string' && isAbsolute(value) ? undefined : 'an absolute path');

const COMMON: Readonly<Record<string, Field>> = {
  attemptTimeoutMs: { check: whole(100, 600_000), query: 'attempt-timeout-ms' },
  deadlineMs: { check: whole(100, 3_600_000), query: 'deadline-ms' },
  readsMax: { check: whole(1, 1_024), query: 'reads-max' },
  writesMax: { check: whole(1, 1_024), query: 'writes-max' },
};
const REMOTE: Readonly<Record<string, Field>> = {
  ...COMMON,
  prefix: { check: isPrefix },
  endpoint: { check: isEndpoint, query: 'endpoint' },
  credentialsFile: { check: absolutePath, query: 'credentials' },
};
const BUCKET = text(/^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$/, 'the name of a bucket: lower-case letters, digits, . _ and -');

const FIELDS: Readonly<Record<ObjectStoreConfig['kind'], Readonly<Record<string, Field>>>> = {
  directory: { ...COMMON, path: { check: absolutePath, needed: true } },
  s3: {
    ...REMOTE,
    bucket: { check: BUCKET, needed: true },
    region: { check: text(/^[a-z0-9-]{2,40}$/, 'the name of a region, like eu-central-1'), query: 'region' },
    forcePathStyle: { check: (value) => (typeof value === 'boolean' ? undefined : 'true or false'), query: 'path-style' },
    checksums: { check: (value) => (typeof value === 'boolean' ? undefined : 'true or false'), query: 'checksums' },
  },
  azure: {
    ...REMOTE,
    container: {
      check: text(/^[a-z0-9](?:-?[a-z0-9]){2,62}$/, 'the name of a container: lower-case letters, digits and single -'),
      needed: true,
    },
    account: { check: text(/^[a-z0-9]{3,24}$/, 'the name of a storage account: 3 to 24 lower-case letters and digits'), needed: true },
  },
  gcs: { ...REMOTE, bucket: { check: BUCKET, needed: true } },
};

/** Throws CONFIG, naming `origin` and the key that is wrong. */
export function checkObjectStoreConfig(value: unknown, origin: string): ObjectStoreConfig {
  const wrong = (message: string): LakebaseError => new LakebaseError('CONFIG', `${origin}: ${message}`);
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw wrong('an object store is a JSON object with a "kind"');
  const { kind, ...rest } = value as Record<string, unknown>;
  if (typeof kind !== 'string' || !Object.hasOwn(FIELDS, kind)) throw wrong(`"kind" must be one of ${Object.keys(FIELDS).join(', ')}`);
  const fields = FIELDS[kind as ObjectStoreConfig['kind']];
  for (const [name, given] of Object.entries(rest)) {
    if (!Object.hasOwn(fields, name))
      throw wrong(`there is no "${name}" for an object store of kind ${kind}; there are ${Object.keys(fields).join(', ')}`);
    const problem = (fields[name] as Field).check(given);
    if (problem !== undefined) throw wrong(`"${name}" must be ${problem}`);
  }
  const missing = Object.keys(fields).find((name) => (fields[name] as Field).needed === true && rest[name] === undefined);
  if (missing !== undefined) throw wrong(`"${missing}" is missing for an object store of kind ${kind}`);
  return value as ObjectStoreConfig;
}

const SCHEMES: Readonly<Record<string, ObjectStoreConfig['kind']>> = {
  'file:': 'directory',
  's3:': 's3',
  'azure:': 'azure',
  'gs:': 'gcs',
  'gcs:': 'gcs',
};

/** `/absolute/directory`, `file:///directory`, `s3://bucket/prefix?region=…&endpoint=…`, `azure://account/container/prefix`, `gs://bucket/prefix`. */
export function parseObjectStoreUrl(given: string, origin: string): ObjectStoreConfig {
  if (isAbsolute(given)) return { kind: 'directory', path: resolve(given) };
  const wrong = (message: string): LakebaseError => new LakebaseError('CONFIG', `${origin}: ${message}`);
  if (!URL.canParse(given))
    throw wrong('not the URL of an object store: use s3://bucket/prefix, azure://account/container, gs://bucket or an absolute path');
  const url = new URL(given);
  const kind = SCHEMES[url.protocol];
  if (kind === undefined)
    throw wrong(
      `${url.protocol}// is no object store: there are ${Object.keys(SCHEMES)
        .map((s) => `${s}//`)
        .join(', ')}`,
    );
  // A URL ends up in lists of processes and in logs.
  if (url.username !== '' || url.password !== '')
    throw wrong('credentials do not belong into the URL: put them into a file of mode 0600 and name it with ?credentials=/path');
  if (url.hash !== '') throw wrong('there must be no # in the URL of an object store');
  const fields = FIELDS[kind];
  const config: Record<string, unknown> = { kind };
  for (const [name, value] of url.searchParams) {
    const field = Object.keys(fields).find((f) => (fields[f] as Field).query === name);
    if (field === undefined) {
      const known = Object.values(fields).flatMap((f) => (f.query === undefined ? [] : [f.query]));
      throw wrong(`there is no ?${name}= for ${url.protocol}//; there are ${known.join(', ')}`);
    }
    config[field] = /^\d+$/.test(value) ? Number(value) : value === 'true' ? true : value === 'false' ? false : value;
  }
  let path: string;
  try {
    path = decodeURIComponent(url.pathname);
  } catch {
    throw wrong('its path has a % that begins no character');
  }
  if (kind === 'directory') config['path'] = path;
  else {
    const names = `${url.host}${path}`.split('/');
    if (names.at(-1) === '') names.pop();
    if (kind === 'azure') config['account'] = names.shift();
    config[kind === 'azure' ? 'container' : 'bucket'] = names.shift();
    if (names.length > 0) config['prefix'] = names.join('/');
  }
  return checkObjectStoreConfig(config, origin);
}

/** What tells one store from another, for people: never with credentials. */
export function objectStoreLocation(config: ObjectStoreConfig): string {
  if (config.kind === 'directory') return `file://${resolve(config.path)}`;
  const path = config.prefix === undefined ? '' : `/${config.prefix}`;
  if (config.kind === 's3') return `s3://${config.bucket}${path}`;
  return config.kind === 'azure' ? `azure://${config.account}/${config.container}${path}` : `gs://${config.bucket}${path}`;
}

function isPrefix(value: unknown): string | undefined {
  try {
    if (typeof value === 'string' && value.length <= 256 && checkObjectKey(value) === value) return undefined;
  } catch {
    /* said below */
  }
  return 'names of letters, digits, . _ and -, with / between them, at most 256 characters';
}

function isEndpoint(value: unknown): string | undefined {
  const problem = 'an address like https://host:port, without credentials';
  if (typeof value !== 'string' || !URL.canParse(value)) return problem;
  const url = new URL(value);
  const plain = url.username === '' && url.password === '' && url.search === '' && url.hash === '';
  return plain && (url.protocol === 'https:' || url.protocol === 'http:') ? undefined : problem;
}
