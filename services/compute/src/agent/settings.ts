/** The configuration files of a compute. Agent-owned settings come last, so nothing a user asks for overrides them.
 *  Local files are scratch: no fsync, no torn-page protection, no checksums; durability is the quorum's (synchronous standbys). */
import { AGENT_OWNED_SETTINGS, refusedValue } from '@lakebase/api';
import type { Term } from '@lakebase/ids';
import type { StandbyRule } from '@lakebase/wal-quorum';

/** Role the agent, safekeepers and proxy connect as for their own work; made by initdb in the template. */
export const ADMIN_ROLE = 'lakebase_admin';
/** Directory-local port: only names the socket file. */
export const COMPUTE_PORT = 5432;

export interface PostgresConfInput {
  readonly major: number;
  readonly term: Term;
  readonly socketDir: string;
  /** Whose flush reports a commit waits for, and how many of them. */
  readonly rule: StandbyRule;
  /** Of the configuration the rule is of: members ask for it before they stream. */
  readonly generation: number;
  readonly sharedBuffers: string;
  readonly settings: Readonly<Record<string, string>>;
  /** The branch has logical replication slots: Postgres starts with them at wal_level=logical only. */
  readonly logicalSlots?: boolean;
}

const quote = (value: string): string => `'${value.replaceAll("'", "''")}'`;
const SETTING_NAME = /^[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?$/;

export function userSettings(settings: Readonly<Record<string, string>>): [string, string][] {
  return Object.entries(settings).filter(
    ([name, value]) =>
      SETTING_NAME.test(name) && !AGENT_OWNED_SETTINGS.has(name) && !/[\r\n\0]/.test(value) && refusedValue(name, value) === undefined,
  );
}

export function postgresqlConf(input: PostgresConfInput): string {
  const lines: [string, string][] = [
    ['shared_buffers', input.sharedBuffers],
    // What lies in them is what a commit behind a bulk writer waits for while storage slows WAL (docs/flows/backpressure.md).
    ['wal_buffers', '1MB'],
    ['max_connections', '200'],
    ['wal_level', 'replica'],
    ['max_wal_size', '1GB'],
    ['checkpoint_timeout', '5min'],
    ['timezone', 'UTC'],
    ['log_timezone', 'UTC'],
    ['password_encryption', 'scram-sha-256'],
    ...userSettings(input.settings),
    ...(input.logicalSlots === true ? [['wal_level', 'logical'] as [string, string]] : []),
    // Safekeepers keep a GiB of WAL behind the pageserver: a slot further behind is invalidated with Postgres's own error.
    ['max_slot_wal_keep_size', '1GB'],
    ['listen_addresses', ''],
    ['unix_socket_directories', input.socketDir],
    ['port', String(COMPUTE_PORT)],
    ['fsync', 'off'],
    ['full_page_writes', 'off'],
    ['wal_init_zero', 'off'],
    // io_uring and direct I/O would read past the shim, from sparse files whose pages were never fetched. Before 18 all I/O is pread's.
    ...(input.major >= 18 ? [['io_method', 'worker'] as [string, string]] : []),
    ['debug_io_direct', ''],
    // `mmap` would put shared memory into files of the data directory, past the shim.
    ['dynamic_shared_memory_type', 'posix'],
    ['synchronous_commit', 'on'],
    ['synchronous_standby_names', `ANY ${input.rule.count} (${input.rule.names.map((name) => `"${name}"`).join(',')})`],
    ['max_wal_senders', '16'],
    ['wal_keep_size', '512MB'],
    ['wal_sender_timeout', '30s'],
    ['archive_mode', 'off'],
    ['restart_after_crash', 'off'],
    ['logging_collector', 'off'],
    ['log_destination', 'stderr'],
    ['log_line_prefix', '%m [%p] '],
    ['lakebase.term', String(input.term)],
    ['lakebase.generation', String(input.generation)],
  ];
  return `# Written by the Lakebase agent at every start; changes are lost.\n${lines.map(([name, value]) => `${name} = ${quote(value)}\n`).join('')}`;
}

/** Only the proxy, the safekeepers and the agent reach this server, by their operating system account over the Unix socket. */
export function pgHbaConf(): string {
  return 'local replication all peer map=lakebase\nlocal all all peer map=lakebase\n';
}

export function pgIdentConf(accounts: readonly string[]): string {
  return [...new Set(accounts)].map((account) => `lakebase "${account}" all\n`).join('');
}
