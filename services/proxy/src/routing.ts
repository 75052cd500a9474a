/** What a start-up message asks for: which endpoint, as which role, in which database, and what is passed on to the compute. Pure. */
import { isIP } from 'node:net';
import { type StartupMessage, fatal, joinOptions, parseOptionWords } from '@lakebase/pg-wire';

export interface ClientRequest {
  /** From `options=endpoint=…`; null when the client named none there. */
  readonly namedEndpoint: string | null;
  readonly role: string;
  /** Start-up parameters for the compute. */
  readonly parameters: readonly (readonly [string, string])[];
  readonly replication: 'none' | 'logical' | 'physical';
  readonly applicationName: string;
}

/** NAMEDATALEN - 1: a stock server cuts longer names, so we must before we look one up. */
const NAME_BYTES_MAX = 63;
const ENDPOINT_MAX = 128;

export function parseClientRequest(startup: StartupMessage): ClientRequest {
  const p = startup.parameters;
  const role = cutName(p.get('user') ?? '');
  if (role === '') throw fatal('28000', 'no PostgreSQL user name specified in startup packet');
  const { endpoint, rest } = extractEndpoint(p.get('options') ?? '');
  const parameters: [string, string][] = [['user', role]];
  for (const [name, value] of p) {
    if (name === 'user' || name === 'options') continue;
    parameters.push([name, name === 'database' ? cutName(value) : value]);
  }
  if (rest !== '') parameters.push(['options', rest]);
  return {
    namedEndpoint: endpoint,
    role,
    parameters,
    replication: replicationMode(p.get('replication')),
    applicationName: p.get('application_name') ?? '',
  };
}

/** `endpoint=x`, `-c endpoint=x`, `-cendpoint=x` and `--endpoint=x` are ours and taken out; all else stays as it was. */
export function extractEndpoint(options: string): { endpoint: string | null; rest: string } {
  if (!options.includes('endpoint')) return { endpoint: null, rest: options };
  let endpoint: string | null = null;
  const rest: string[] = [];
  for (const option of parseOptionWords(options)) {
    if (option.name === 'endpoint') endpoint = option.value ?? '';
    else rest.push(...option.words);
  }
  if (endpoint !== null && (endpoint === '' || endpoint.length > ENDPOINT_MAX))
    throw fatal('08P01', 'the endpoint in the connection options is empty or too long', {
      hint: 'Write options=endpoint=<endpoint id> in the connection string.',
    });
  return { endpoint, rest: joinOptions(rest) };
}

/** The endpoint an SNI name stands for: its first label, unless the name says nothing about endpoints. */
export function endpointFromSni(serverName: string | undefined, domain: string | null): string | null {
  if (serverName === undefined || serverName === '' || isIP(serverName) !== 0) return null;
  const name = serverName.toLowerCase().replace(/\.$/, '');
  const dot = name.indexOf('.');
  if (dot < 1 || name.length > 253) return null;
  if (domain !== null && name.slice(dot + 1) !== domain.toLowerCase()) return null;
  return name.slice(0, dot);
}

/** The form of every endpoint id the Manager gives out. */
export const looksLikeEndpoint = (label: string): boolean => label.startsWith('ep-');

function replicationMode(value: string | undefined): ClientRequest['replication'] {
  if (value === undefined) return 'none';
  const v = value.toLowerCase();
  if (v === 'database') return 'logical';
  // The server takes any unambiguous prefix of a boolean; whatever is not plainly false counts as a request.
  return v !== '' && (['false', 'no'].some((word) => word.startsWith(v)) || v === 'of' || v === 'off' || v === '0') ? 'none' : 'physical';
}

/** At most 63 bytes of UTF-8, never half a character. */
export function cutName(name: string): string {
  const bytes = Buffer.from(name);
  if (bytes.length <= NAME_BYTES_MAX) return name;
  let end = NAME_BYTES_MAX;
  while (((bytes[end] as number) & 0xc0) === 0x80) end--;
  return bytes.toString('utf8', 0, end);
}
