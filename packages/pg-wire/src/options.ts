/** The `options` start-up parameter: words separated by white space, a backslash takes the next character literally.
 *  A word is a server switch (`-c name=value`, `--name=value`) or, for our proxy, a bare `name=value`. */

const SPACE = /[ \t\n\v\f\r]/;

export function splitOptions(text: string): string[] {
  const words: string[] = [];
  let word: string | undefined;
  for (let i = 0; i < text.length; i++) {
    const c = text[i] as string;
    if (SPACE.test(c)) {
      if (word !== undefined) words.push(word);
      word = undefined;
    } else if (c === '\\') {
      i++;
      word = (word ?? '') + (text[i] ?? '');
    } else word = (word ?? '') + c;
  }
  if (word !== undefined) words.push(word);
  return words;
}

/** Inverse of {@link splitOptions}. */
export const joinOptions = (words: readonly string[]): string => words.map((w) => w.replace(/[\\ \t\n\v\f\r]/g, '\\$&')).join(' ');

export interface OptionWord {
  /** The words this setting was written with: one, or two for `-c name=value`. */
  readonly words: readonly string[];
  /** Name with dashes read as underscores, as the server does; undefined when the word is not a setting. */
  readonly name?: string;
  readonly value?: string;
  /** Written without a dash: not something a server would accept. */
  readonly bare?: boolean;
}

export function parseOptionWords(text: string): OptionWord[] {
  const words = splitOptions(text);
  const out: OptionWord[] = [];
  for (let i = 0; i < words.length; i++) {
    const word = words[i] as string;
    if (word === '-c' && i + 1 < words.length) {
      i++;
      out.push(setting([word, words[i] as string], words[i] as string, false));
    } else if (word.startsWith('--')) out.push(setting([word], word.slice(2), false));
    else if (word.startsWith('-c')) out.push(setting([word], word.slice(2), false));
    else if (word.startsWith('-')) out.push({ words: [word] });
    else out.push(setting([word], word, true));
  }
  return out;
}

/** Every setting in `options`; a later one wins. */
export function settingsFromOptions(text: string | undefined): Map<string, string> {
  const out = new Map<string, string>();
  for (const o of parseOptionWords(text ?? '')) if (o.name !== undefined && o.bare !== true) out.set(o.name, o.value ?? '');
  return out;
}

function setting(words: string[], text: string, bare: boolean): OptionWord {
  const at = text.indexOf('=');
  if (at < 1) return { words };
  return { words, name: text.slice(0, at).replaceAll('-', '_'), value: text.slice(at + 1), bare };
}
