package engineconfig

import (
	"bytes"
	"fmt"
	"unicode/utf8"
)

// at says where in a text an error is. Lines and columns count from 1, columns in
// characters.
func at(text []byte, offset int, err error) error {
	before := text[:max(0, min(offset, len(text)))]
	line := bytes.Count(before, []byte("\n")) + 1
	column := utf8.RuneCount(before[bytes.LastIndexByte(before, '\n')+1:]) + 1
	return fmt.Errorf("line %d, column %d: %w", line, column, err)
}
