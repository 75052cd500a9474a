/** What Postgres says, kept in memory only: messages and statements hold customers' data, and nothing of a compute reaches a disk in plaintext.
 *  Invariants: bounded in lines and bytes; what leaves this class for a service's log is either of a fixed list of texts that hold no data, or a
 *  severity without its text. */
import { LakebaseError } from '@lakebase/base';

const LINES_MAX = 2_000;
const LINE_BYTES_MAX = 8_192;
const BYTES_MAX = 1 << 20;

/** `%m [%p] ` of log_line_prefix, then the severity (elog.c error_severity). */
const MESSAGE = /^\S+ \S+ \S+ \[\d+\] (DEBUG|LOG|INFO|NOTICE|WARNING|ERROR|FATAL|PANIC): {2}(.*)$/;

/** Messages of the postmaster and its own processes, without names, values or statements. The shim's lines name relations by number only. */
const WITHOUT_DATA = [
  /^starting PostgreSQL /,
  /^database system (is|was) [a-z -]+( at [0-9: .-]+ [A-Z]+)?$/,
  /^(received (smart|fast|immediate) shutdown request|aborting any active transactions|shutting down|terminating any other active server processes)$/,
  /^all server processes terminated/,
  /^shutting down because "restart_after_crash" is off$/,
  /^(server process|[a-z ]+ process|background worker "[a-z ]+") \(PID \d+\) (exited with exit code \d+|was terminated by signal \d+(: [A-Za-z ]+)?)$/,
  /^could not fork /,
  /^out of memory$/,
  /^(sorry, too many clients already|the database system is (starting up|shutting down|in recovery mode))$/,
];

export class PostgresLog {
  readonly #lines: string[] = [];
  #bytes = 0;
  #rest = '';
  #ready = false;
  /** Called with lines that hold no data, as they come. */
  onPublicLine: (line: string) => void = () => {};

  push(chunk: Buffer): void {
    const parts = (this.#rest + chunk.toString('utf8')).split('\n');
    this.#rest = (parts.pop() ?? '').slice(-LINE_BYTES_MAX);
    for (const line of parts) this.#add(line);
  }

  /** Clients may connect from here on, so from here on messages may hold their data. */
  ready(): void {
    this.#ready = true;
  }

  /** For whoever may see the customer's data. */
  tail(lines: number): string[] {
    if (!Number.isInteger(lines) || lines < 0) throw new LakebaseError('INVALID_ARGUMENT', 'the number of lines is not a number of lines');
    return lines === 0 ? [] : this.#lines.slice(-lines);
  }

  /** Why Postgres did not start, or ended: for status and service logs. Before it was ready nobody's data was in reach, so then the text is whole. */
  reason(lines: number): string {
    const shown = this.#ready ? this.#lines.flatMap((line) => publicLine(line) ?? []) : this.#lines;
    return shown.slice(-lines).join(' | ').slice(-2_000) || 'no message';
  }

  clear(): void {
    this.#lines.length = 0;
    this.#bytes = 0;
    this.#rest = '';
  }

  #add(line: string): void {
    const kept = line.slice(0, LINE_BYTES_MAX);
    this.#lines.push(kept);
    this.#bytes += kept.length;
    while (this.#lines.length > LINES_MAX || this.#bytes > BYTES_MAX) this.#bytes -= this.#lines.shift()?.length ?? 0;
    const shown = publicLine(kept);
    if (shown !== undefined) this.onPublicLine(shown);
  }
}

/** The line as far as anybody may see it; undefined: the continuation of another. */
export function publicLine(line: string): string | undefined {
  if (/^pgshim\[\d+\]: /.test(line)) return line;
  const match = MESSAGE.exec(line);
  if (match === null) return undefined;
  const [, severity = '', text = ''] = match;
  if (WITHOUT_DATA.some((known) => known.test(text))) return `${severity}: ${text}`;
  return severity === 'LOG' || severity === 'DEBUG' || severity === 'INFO' ? undefined : `${severity}: (text withheld: it may hold data)`;
}
