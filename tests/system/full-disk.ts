/** Safekeepers on disks that can be filled: a small tmpfs under a member's data directory, and a file that takes what is left of it.
 *  Needs the right to mount; `undefined` otherwise. Unmount before the directory is removed. */
import { execFileSync } from 'node:child_process';
import { closeSync, mkdirSync, openSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';

const CHUNK = Buffer.alloc(64 * 1024, 1);

export class SmallDisk implements Disposable {
  readonly directory: string;
  #mounted = true;
  readonly #onExit = (): void => this[Symbol.dispose]();

  private constructor(directory: string) {
    this.directory = directory;
    // A test that dies must not leave a mount behind.
    process.once('exit', this.#onExit);
  }

  static mount(directory: string, options: string): SmallDisk | undefined {
    mkdirSync(directory, { recursive: true, mode: 0o755 });
    if (process.getuid?.() !== 0) return undefined;
    try {
      execFileSync('mount', ['-t', 'tmpfs', '-o', options, 'tmpfs', directory], { stdio: 'ignore' });
      return new SmallDisk(directory);
    } catch {
      return undefined;
    }
  }

  /** Until not a byte fits any more. */
  fill(): void {
    const fd = openSync(join(this.directory, 'ballast'), 'a');
    try {
      for (let size = CHUNK.length; size > 0; ) {
        try {
          writeSync(fd, CHUNK, 0, size);
        } catch (error) {
          if ((error as NodeJS.ErrnoException).code !== 'ENOSPC') throw error;
          size = Math.floor(size / 16);
        }
      }
    } finally {
      closeSync(fd);
    }
  }

  release(): void {
    rmSync(join(this.directory, 'ballast'), { force: true });
  }

  [Symbol.dispose](): void {
    if (!this.#mounted) return;
    this.#mounted = false;
    process.off('exit', this.#onExit);
    execFileSync('umount', ['-l', this.directory]);
  }
}
