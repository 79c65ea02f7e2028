//! Texts and bytes as the older protocols write them.

use super::malformed;
use crate::error::Result;

/// Protocol 0 writes a text as Latin-1, in which `\u` with four and `\U` with eight hexadecimal digits are escapes. A
/// backslash before anything else, another one as well, stands for itself.
pub(super) fn unescaped(line: &[u8], at: usize) -> Result<String> {
    let (mut text, mut rest) = (String::with_capacity(line.len()), line);
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            text.push(char::from(byte));
            continue;
        }
        let Some((&next, after)) = rest.split_first() else {
            text.push('\\');
            break;
        };
        rest = after;
        let digits = match next {
            b'u' => 4,
            b'U' => 8,
            _ => {
                text.extend(['\\', char::from(next)]);
                continue;
            }
        };
        let Some((code, after)) = rest.split_at_checked(digits) else {
            return Err(malformed(at, "a text ends within an escape"));
        };
        text.push(escaped(code).ok_or_else(|| malformed(at, "an escape of a text is no character"))?);
        rest = after;
    }
    Ok(text)
}

fn escaped(digits: &[u8]) -> Option<char> {
    let digit = |&byte: &u8| char::from(byte).to_digit(16);
    let code = digits.iter().try_fold(0_u32, |code, byte| Some(code << 4 | digit(byte)?))?;
    char::from_u32(code)
}

/// The bytes whose values are the characters of a text: protocols 0 to 2 write bytes so.
pub(super) fn latin1(text: &str, at: usize) -> Result<Vec<u8>> {
    let byte = |c: char| u8::try_from(u32::from(c)).map_err(|_| malformed(at, format!("`{c}` stands for no byte")));
    text.chars().map(byte).collect()
}
