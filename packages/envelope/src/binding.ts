/** Associated data of frames: what an object is, so that a frame opens nowhere else. docs/formats/envelope.md
 *  The header is bound by its SHA-256, not its CRC: whoever can write the disk can give two headers one CRC. */
import { hash } from 'node:crypto';

/** `project · timeline · u16 length · name · SHA-256 of the header · 8 bytes for the frame number`; identities as 32 hexadecimal digits. */
export function objectBinding(project: string, timeline: string, name: string, header: Buffer): Buffer {
  const text = Buffer.from(name, 'utf8');
  const out = Buffer.alloc(34 + text.length + 32 + 8);
  out.write(project, 0, 'hex');
  out.write(timeline, 16, 'hex');
  out.writeUInt16BE(text.length, 32);
  text.copy(out, 34);
  hash('sha256', header, 'buffer').copy(out, 34 + text.length);
  return out;
}

/** Puts the frame number into the last 8 bytes of a binding, which it returns: one buffer serves all frames of an object in turn. */
export function bindFrame(binding: Buffer, n: number): Buffer {
  binding.writeUInt32BE(Math.floor(n / 0x1_0000_0000), binding.length - 8);
  binding.writeUInt32BE(n % 0x1_0000_0000, binding.length - 4);
  return binding;
}
