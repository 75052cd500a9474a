/** Who this disk is. Made once, when the data directory is first used: an incarnation, and one note for each member this disk ever was.
 *
 *  Invariants: the note of a member is durable before its control file is; a member with a note and without a readable control file is lost, and is never made
 *  again under that identity: it may have promised votes and acknowledged WAL. Losing this directory loses the incarnation with the notes, and with it the
 *  right to be any of those members. */
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, readdirSync, renameSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { LakebaseError } from '@lakebase/base';
import { type ProjectUid, type TimelineId, parseProjectUid, parseTimelineId } from '@lakebase/ids';
import { syncDir } from './control-store.ts';

const DIRECTORY = 'identity';

export class DiskIdentity {
  readonly incarnation: string;
  readonly #dir: string;
  /** Timeline -> every member this disk ever was on it. */
  readonly #members = new Map<string, readonly string[]>();

  constructor(dataDir: string) {
    mkdirSync(dataDir, { recursive: true, mode: 0o700 });
    this.#dir = join(dataDir, DIRECTORY);
    const path = join(this.#dir, 'incarnation');
    if (!existsSync(path)) {
      mkdirSync(this.#dir, { recursive: true, mode: 0o700 });
      this.#replace('incarnation', randomBytes(16).toString('hex'));
      syncDir(dataDir);
    }
    this.incarnation = readFileSync(path, 'utf8').trim();
    if (!/^[0-9a-f]{32}$/.test(this.incarnation))
      throw new LakebaseError(
        'CORRUPT',
        `${path} does not hold 32 hexadecimal digits; remove the whole data directory: this node then joins anew`,
      );
    for (const name of readdirSync(this.#dir)) {
      const match = /^([0-9a-f]{32})-([0-9a-f]{32})$/.exec(name);
      if (match === null) continue;
      const [, project = '', timeline = ''] = match;
      const lines = readFileSync(join(this.#dir, name), 'utf8').split('\n');
      this.#members.set(
        `${project}/${timeline}`,
        lines.filter((line) => line !== ''),
      );
    }
  }

  /** Every member this disk ever was on the timeline, the latest last. */
  membersOf(project: ProjectUid, timeline: TimelineId): readonly string[] {
    return this.#members.get(`${project}/${timeline}`) ?? [];
  }

  /** Durable when it returns. */
  note(project: ProjectUid, timeline: TimelineId, member: string): void {
    const known = this.membersOf(project, timeline);
    if (known.includes(member)) return;
    const members = [...known, member];
    this.#replace(`${project}-${timeline}`, `${members.join('\n')}\n`);
    this.#members.set(`${project}/${timeline}`, members);
  }

  /** Timelines this disk ever held, with the member it was last. */
  *[Symbol.iterator](): Iterator<{ project: ProjectUid; timeline: TimelineId; member: string }> {
    for (const [key, members] of this.#members) {
      const [project, timeline] = key.split('/');
      yield { project: parseProjectUid(project), timeline: parseTimelineId(timeline), member: members.at(-1) as string };
    }
  }

  #replace(name: string, text: string): void {
    const path = join(this.#dir, name);
    writeFileSync(`${path}.new`, text, { mode: 0o600, flush: true });
    renameSync(`${path}.new`, path);
    syncDir(this.#dir);
  }
}
