// Lists of prompts as text. No document, no server. The server reads files once more, and more strictly.

const COLUMNS = ["prompt", "prompts", "caption", "captions", "text", "description"];

/** One prompt a line, without empty ones. */
export const linesOf = (text) => String(text ?? "").split(/\r\n|\n|\r/).map((line) => line.trim()).filter(Boolean);

/** Each once, in order. */
export const withoutRepeats = (lines) => [...new Set(lines)];

/** A dropped text or table -> {prompts} or {error}. */
export function columnOf(text, name) {
  const table = /\.tsv$/i.test(name) ? "\t" : /\.csv$/i.test(name) ? "," : "";
  if (!table) return { prompts: linesOf(text.replace(/^\uFEFF/, "")) };
  const first = text.replace(/^\uFEFF/, "").split(/\r\n|\n|\r/, 1)[0];
  const separator = table === "," && !first.includes(",") && first.includes(";") ? ";" : table;
  const rows = rowsOf(text.replace(/^\uFEFF/, ""), separator).filter((row) => row.some((cell) => cell.trim()));
  const heading = (rows[0] ?? []).map((cell) => cell.trim().toLowerCase());
  const column = COLUMNS.map((title) => heading.indexOf(title)).find((index) => index >= 0);
  if (column === undefined && rows.every((row) => row.length === 1)) {
    return { prompts: rows.map((row) => oneLine(row[0])) };
  }
  if (column === undefined) return { error: `${name} has no column named "prompt".` };
  return { prompts: rows.slice(1).map((row) => oneLine(row[column] ?? "")).filter(Boolean) };
}

const oneLine = (cell) => cell.replace(/\s+/g, " ").trim();

/** Rows of a table; quoted cells may hold separators, line ends and doubled quotes. */
function rowsOf(text, separator) {
  const rows = [[]];
  const cells = new RegExp(`(?:"((?:[^"]|"")*)"|([^${separator}\\r\\n]*))(${separator}|\\r\\n|\\n|\\r|$)`, "y");
  for (let at = 0; at < text.length;) {
    cells.lastIndex = at;
    const found = cells.exec(text);
    if (!found) { // a stray quote: the rest of its line is lost
      at = text.indexOf("\n", at) + 1 || text.length;
      continue;
    }
    rows.at(-1).push(found[1] !== undefined ? found[1].replaceAll('""', '"') : found[2]);
    if (found[3] !== separator && found[3] !== "") rows.push([]);
    at = found[0] === "" ? text.length : cells.lastIndex;
  }
  return rows;
}
