/** The configuration files of all services of one machine, written anew at every start from the directory, the environment and the ports. */
import { chmodSync, existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { randomBytes, createHash } from 'node:crypto';
import { join } from 'node:path';
import { tmpdir } from 'node:os';
import { LakebaseError } from '@lakebase/base';
import type { PeerAddress } from '@lakebase/api';
import { POSTGRES_MAJORS } from '@lakebase/service-kit';
import type { Home } from '../home.ts';
import { OBJECT_STORE_VARIABLE, readObjectStoreSettings } from './object-store-settings.ts';
import { KEY_SETTINGS, PAGESERVER_SETTINGS, SAFEKEEPER_SETTINGS, readOperatorSettings } from './operator-settings.ts';

export const SAFEKEEPERS = ['sk1', 'sk2', 'sk3'] as const;
/** Stands ready to take the place of one that is gone for good (docs/protocols/membership.md); runs with LAKEBASE_SAFEKEEPERS=4. */
export const SPARE_SAFEKEEPERS = ['sk4'] as const;
/** The second one runs with LAKEBASE_PAGESERVERS=2. */
export const PAGESERVERS = ['pageserver', 'pageserver2'] as const;
export const SERVICE_NAMES = ['keymanager', ...SAFEKEEPERS, ...SPARE_SAFEKEEPERS, ...PAGESERVERS, 'compute', 'manager', 'proxy'] as const;
type SafekeeperName = (typeof SAFEKEEPERS)[number] | (typeof SPARE_SAFEKEEPERS)[number];
export type ServiceName = (typeof SERVICE_NAMES)[number];

/** Started together, stopped together: a group starts when the one before it is healthy, and stops in the reverse order. */
export const START_ORDER: readonly (readonly ServiceName[])[] = [
  ['keymanager'],
  [...SAFEKEEPERS, ...SPARE_SAFEKEEPERS],
  [...PAGESERVERS, 'compute'],
  ['manager'],
  ['proxy'],
];

export const INTERNAL_PORTS = [
  'keymanagerHttp',
  'sk1Http',
  'sk1Pg',
  'sk2Http',
  'sk2Pg',
  'sk3Http',
  'sk3Pg',
  'sk4Http',
  'sk4Pg',
  'pageserverHttp',
  'pageserverPages',
  'pageserver2Http',
  'pageserver2Pages',
  'computeHttp',
  'proxyHttp',
] as const;
export type InternalPorts = Readonly<Record<(typeof INTERNAL_PORTS)[number], number>>;

export interface Settings {
  readonly pgPort: number;
  readonly httpPort: number;
  /** Where the two public listeners bind; loopback unless asked otherwise. */
  readonly listenHost: string;
  readonly databaseUrl: string | null;
  /** LAKEBASE_OBJECT_STORE */
  readonly objectStoreUrl: string | null;
  readonly postgresPrefix: string | null;
  /** By major: of the others than the default. */
  readonly postgresInstallations: Readonly<Record<string, string>>;
  readonly logLevel: string;
  readonly suspendTimeoutSeconds: number;
  /** LAKEBASE_WAL_OFFLOAD_MAX_AGE: committed WAL is in the object store after so many seconds. */
  readonly walOffloadMaxAgeSeconds?: number;
  readonly pageservers: number;
  readonly safekeepers: number;
  /** LAKEBASE_TEST_PLAINTEXT: storage does not encrypt, so that the scan for plaintext can be seen to find it. */
  readonly testPlaintext: boolean;
  readonly tls: { readonly certFile: string; readonly keyFile: string } | null;
}

const LOOPBACK = '127.0.0.1';

export function settingsFromEnv(env: NodeJS.ProcessEnv, pgPort: number, httpPort: number): Settings {
  const some = (name: string): string | null => (env[name] === undefined || env[name] === '' ? null : (env[name] as string));
  const level = some('LAKEBASE_LOG_LEVEL') ?? 'info';
  if (!['debug', 'info', 'warn', 'error'].includes(level))
    throw new LakebaseError('CONFIG', `LAKEBASE_LOG_LEVEL=${level}: use debug, info, warn or error`);
  const suspend = Number(some('LAKEBASE_SUSPEND_SECONDS') ?? 300);
  if (!Number.isInteger(suspend) || suspend < 1)
    throw new LakebaseError('CONFIG', `LAKEBASE_SUSPEND_SECONDS must be a whole number of seconds from 1`);
  const walAge = some('LAKEBASE_WAL_OFFLOAD_MAX_AGE');
  if (walAge !== null && !(Number.isInteger(Number(walAge)) && Number(walAge) >= 1))
    throw new LakebaseError('CONFIG', `LAKEBASE_WAL_OFFLOAD_MAX_AGE must be a whole number of seconds from 1`);
  const [certFile, keyFile] = [some('LAKEBASE_TLS_CERT'), some('LAKEBASE_TLS_KEY')];
  if ((certFile === null) !== (keyFile === null))
    throw new LakebaseError('CONFIG', 'LAKEBASE_TLS_CERT and LAKEBASE_TLS_KEY are only useful together: set both or none');
  const pageservers = Number(some('LAKEBASE_PAGESERVERS') ?? 1);
  if (pageservers !== 1 && pageservers !== 2) throw new LakebaseError('CONFIG', 'LAKEBASE_PAGESERVERS is 1 or 2');
  const safekeepers = Number(some('LAKEBASE_SAFEKEEPERS') ?? 3);
  if (safekeepers !== 3 && safekeepers !== 4)
    throw new LakebaseError('CONFIG', 'LAKEBASE_SAFEKEEPERS is 3, or 4 with one that stands ready');
  return {
    pgPort,
    httpPort,
    listenHost: some('LAKEBASE_LISTEN') ?? LOOPBACK,
    databaseUrl: some('LAKEBASE_DATABASE_URL'),
    objectStoreUrl: some(OBJECT_STORE_VARIABLE),
    postgresPrefix: some('LAKEBASE_POSTGRES'),
    postgresInstallations: Object.fromEntries(
      POSTGRES_MAJORS.flatMap((major) => {
        const prefix = some(`LAKEBASE_POSTGRES_${major}`);
        return prefix === null ? [] : [[String(major), prefix]];
      }),
    ),
    logLevel: level,
    suspendTimeoutSeconds: suspend,
    ...(walAge === null ? {} : { walOffloadMaxAgeSeconds: Number(walAge) }),
    pageservers,
    safekeepers,
    testPlaintext: some('LAKEBASE_TEST_PLAINTEXT') === '1',
    tls: certFile === null || keyFile === null ? null : { certFile, keyFile },
  };
}

export function serviceConfigs(home: Home, root: string, ports: InternalPorts, s: Settings): Record<ServiceName, Record<string, unknown>> {
  const common = (id: string, httpPort: number): Record<string, unknown> => ({
    id,
    httpHost: LOOPBACK,
    httpPort,
    secretFile: home.secretFile,
    logLevel: s.logLevel,
  });
  const http = (port: number): string => `http://${LOOPBACK}:${port}`;
  const safekeeperAddress = (id: SafekeeperName): PeerAddress => ({
    id,
    httpUrl: http(ports[`${id}Http`]),
    pgHost: LOOPBACK,
    pgPort: ports[`${id}Pg`],
  });
  const peers = SAFEKEEPERS.map(safekeeperAddress);
  const spares = SPARE_SAFEKEEPERS.slice(0, s.safekeepers - SAFEKEEPERS.length).map(safekeeperAddress);
  const keyManagerUrl = http(ports.keymanagerHttp);
  const objectStore = readObjectStoreSettings(home, s.objectStoreUrl);
  const safekeeper = (id: SafekeeperName): Record<string, unknown> => ({
    ...common(id, ports[`${id}Http`]),
    pgHost: LOOPBACK,
    pgPort: ports[`${id}Pg`],
    dataDir: join(home.data, id),
    keyManagerUrl,
    objectStore,
    testPlaintext: s.testPlaintext,
    ...readOperatorSettings(home.safekeeperSettingsFile, 'the safekeepers', SAFEKEEPER_SETTINGS),
    ...(s.walOffloadMaxAgeSeconds === undefined ? {} : { offloadAgeMs: s.walOffloadMaxAgeSeconds * 1_000 }),
    peers: peers.filter((peer) => peer.id !== id),
    nodes: spares.filter((spare) => spare.id !== id),
  });
  const pageserver = (id: (typeof PAGESERVERS)[number]): Record<string, unknown> => ({
    ...common(id, ports[`${id}Http`]),
    dataDir: join(home.data, id),
    keyManagerUrl,
    managerUrl: `http://${reachable(s.listenHost)}:${s.httpPort}`,
    objectStore,
    testPlaintext: s.testPlaintext,
    pageHost: LOOPBACK,
    pagePort: ports[`${id}Pages`],
    ...readOperatorSettings(home.pageserverSettingsFile, 'the pageservers', PAGESERVER_SETTINGS),
  });
  const pageserverAddress = (id: (typeof PAGESERVERS)[number]): Record<string, unknown> => ({
    id,
    httpUrl: http(ports[`${id}Http`]),
    pageHost: LOOPBACK,
    pagePort: ports[`${id}Pages`],
  });
  return {
    keymanager: {
      ...common('keymanager', ports.keymanagerHttp),
      dataDir: join(home.data, 'keymanager'),
      rootKeyFile: home.rootKeyFile,
      objectStore,
      storageServices: [...SAFEKEEPERS, ...spares.map((spare) => spare.id), ...PAGESERVERS.slice(0, s.pageservers)],
      ...readOperatorSettings(home.keySettingsFile, 'the key manager', KEY_SETTINGS),
    },
    sk1: safekeeper('sk1'),
    sk2: safekeeper('sk2'),
    sk3: safekeeper('sk3'),
    sk4: safekeeper('sk4'),
    pageserver: pageserver('pageserver'),
    pageserver2: pageserver('pageserver2'),
    compute: {
      ...common('compute', ports.computeHttp),
      dataDir: join(home.data, 'compute'),
      runtimeDir: runtimeDir(home),
      pageserverHttpUrl: http(ports.pageserverHttp),
      postgresPrefix: s.postgresPrefix,
      postgresInstallations: s.postgresInstallations,
      shimPath: join(root, 'native', 'pgshim', 'build', 'pgshim.so'),
    },
    manager: {
      ...common('manager', s.httpPort),
      httpHost: s.listenHost,
      dataDir: join(home.data, 'manager'),
      databaseUrl: s.databaseUrl,
      postgresPrefix: s.postgresPrefix,
      computeHostUrl: http(ports.computeHttp),
      pageserver: pageserverAddress('pageserver'),
      morePageservers: PAGESERVERS.slice(1, s.pageservers).map(pageserverAddress),
      safekeepers: peers,
      spareSafekeepers: spares,
      keyManagerUrl,
      objectStore,
      localKeysDir: home.keysDir,
      proxyHost: 'localhost',
      proxyPort: s.pgPort,
      adminTokenFile: home.adminTokenFile,
      credentialsFile: home.credentialsFile,
      suspendTimeoutSeconds: s.suspendTimeoutSeconds,
    },
    proxy: {
      ...common('proxy', ports.proxyHttp),
      listenHost: s.listenHost,
      listenPort: s.pgPort,
      keyManagerUrl,
      managerUrl: `http://${reachable(s.listenHost)}:${s.httpPort}`,
      dataDir: join(home.data, 'proxy'),
      tls: s.tls,
      reservedRoles: ['lakebase_admin', 'postgres'],
    },
  };
}

/** Not every service runs in every installation. */
export const isWanted = (name: ServiceName, s: Settings): boolean =>
  (name !== 'pageserver2' || s.pageservers > 1) && (name !== 'sk4' || s.safekeepers > 3);

/** Where this machine reaches a listener that is bound to `host`. */
export const reachable = (host: string): string =>
  host === '0.0.0.0' || host === '::' ? LOOPBACK : host.includes(':') ? `[${host}]` : host;

/** Socket paths are limited to 107 bytes and must be reachable by Postgres's account, so sockets are not under the home directory. */
function runtimeDir(home: Home): string {
  const uid = process.getuid?.() ?? 0;
  return join(existsSync('/tmp') ? '/tmp' : tmpdir(), `lakebase-${uid}-${createHash('sha256').update(home.dir).digest('hex').slice(0, 8)}`);
}

export const entryPoint = (name: ServiceName): string => `services/${kindOf(name)}/dist/main.js`;
export const kindOf = (name: ServiceName): string => name.replace(/^sk[0-9]$/, 'safekeeper').replace(/^pageserver[0-9]$/, 'pageserver');
export const configPath = (home: Home, name: ServiceName): string => join(home.config, `${name}.json`);

export function writeJson(path: string, value: unknown, mode = 0o600): void {
  const fresh = `${path}.new`;
  writeFileSync(fresh, `${JSON.stringify(value, null, 2)}\n`, { mode, flush: true });
  renameSync(fresh, path);
}

/** 32 random bytes as hex, made once; everything internal is authenticated with it. */
export function ensureSecret(home: Home): void {
  if (existsSync(home.secretFile)) {
    if (!/^[0-9a-f]{64}\s*$/.test(readFileSync(home.secretFile, 'utf8')))
      throw new LakebaseError(
        'CONFIG',
        `${home.secretFile} does not hold 64 hexadecimal digits: restore it, or start on an empty directory`,
      );
    return;
  }
  const fresh = `${home.secretFile}.new`;
  writeFileSync(fresh, `${randomBytes(32).toString('hex')}\n`, { mode: 0o600, flush: true });
  chmodSync(fresh, 0o600);
  renameSync(fresh, home.secretFile);
}
