package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/gearsfs/gearsfs"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// recordFormat says how a record is written.
type recordFormat struct {
	raw  bool // exactly
	nul  bool // followed by NUL
	json formatFlag
}

func (f *recordFormat) flags(c *cobra.Command) {
	c.Flags().BoolVar(&f.raw, "raw", false, "write records exactly, adding no newline")
	c.Flags().BoolVarP(&f.nul, "null", "0", false, "write a NUL after each record")
	c.Flags().VarP(&f.json, "output", "o", "write one JSON object per line")
}

// formatsApart are the flags of recordFormat that exclude each other.
const formatsApart = "raw null output"

// append appends r to buf in its format.
func (f *recordFormat) append(buf []byte, r gearsfs.Record) ([]byte, error) {
	switch {
	case f.json.json:
		return appendJSON(buf, r)
	case f.raw:
		return append(buf, r.Data...), nil
	case f.nul:
		return append(append(buf, r.Data...), 0), nil
	}
	buf = append(buf, r.Data...)
	if !bytes.HasSuffix(r.Data, []byte{'\n'}) {
		buf = append(buf, '\n')
	}
	return buf, nil
}

// recordJSON is a record as -o json shows it.
type recordJSON struct {
	keyJSON
	Seq gearsfs.Seq `json:"seq"`
	typeJSON
	Time       string  `json:"time"`
	Deliveries uint32  `json:"deliveries"`
	Receipt    string  `json:"receipt,omitempty"`
	Deadline   string  `json:"deadline,omitempty"`
	Data       *string `json:"data,omitempty"`
	DataBase64 []byte  `json:"data_base64,omitempty"`
}

// keyJSON is a stream's key within an object, in base64 where it is not UTF-8.
type keyJSON struct {
	Key       *string `json:"key,omitempty"`
	KeyBase64 []byte  `json:"key_base64,omitempty"`
}

func keyToJSON(k gearsfs.Key) (j keyJSON) {
	j.Key, j.KeyBase64 = textOrBytes(string(k))
	return j
}

// typeJSON is a record's or stream's type within an object, in base64 where it is
// not UTF-8.
type typeJSON struct {
	Type       *string `json:"type,omitempty"`
	TypeBase64 []byte  `json:"type_base64,omitempty"`
}

func typeToJSON(name string) (j typeJSON) {
	j.Type, j.TypeBase64 = textOrBytes(name)
	return j
}

// pathJSON is a path within an object, in base64 where it is not UTF-8.
type pathJSON struct {
	Path       *string `json:"path,omitempty"`
	PathBase64 []byte  `json:"path_base64,omitempty"`
}

func pathToJSON(path string) (j pathJSON) {
	j.Path, j.PathBase64 = textOrBytes(path)
	return j
}

// textOrBytes returns s as text, or, where it is not UTF-8 and JSON has no text
// for it, as bytes, which are written in base64.
func textOrBytes(s string) (*string, []byte) {
	if utf8.ValidString(s) {
		return &s, nil
	}
	return nil, []byte(s)
}

func appendJSON(buf []byte, r gearsfs.Record) ([]byte, error) {
	j := recordJSON{
		keyJSON: keyToJSON(r.Key), Seq: r.Place.Seq, typeJSON: typeToJSON(r.Type),
		Time: timeText(r.Time), Deliveries: r.Deliveries,
	}
	if r.Receipt != nil && !r.Deadline.IsZero() { // else it is not lent to whoever reads this
		j.Receipt, j.Deadline = receiptText(*r.Receipt), timeText(r.Deadline)
	}
	j.Data, j.DataBase64 = textOrBytes(string(r.Data))
	return appendLine(buf, j)
}

// appendLine appends v as one line of JSON.
func appendLine(buf []byte, v any) ([]byte, error) {
	var line bytes.Buffer
	e := json.NewEncoder(&line)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return buf, fmt.Errorf("write JSON: %w", err)
	}
	return append(buf, line.Bytes()...), nil
}

func (a *app) printJSON(v any) error {
	line, err := appendLine(nil, v)
	if err != nil {
		return err
	}
	return a.printf("%s", line)
}

func timeText(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// sinkChunkBytes is how much is written at once: what is known to have been
// written when a write is given up counts in chunks.
const sinkChunkBytes = 64 << 10

// sink writes records to an output that may stop taking them.
type sink struct {
	out    io.Writer
	format recordFormat
	buf    []byte
	ends   []int // of each record in buf
}

// write writes the records and returns how many of them are wholly written:
// fewer only with an error. When ctx ends it does not wait for an output that
// is stuck.
func (s *sink) write(ctx context.Context, records []gearsfs.Record) (int, error) {
	s.buf, s.ends = s.buf[:0], s.ends[:0]
	for _, r := range records {
		var err error
		if s.buf, err = s.format.append(s.buf, r); err != nil {
			return 0, err
		}
		s.ends = append(s.ends, len(s.buf))
	}
	var written atomic.Int64
	done := make(chan error, 1)
	buf := s.buf
	go func() { // where the output is stuck it goes with the process
		for rest := buf; len(rest) > 0; {
			n, err := s.out.Write(rest[:min(len(rest), sinkChunkBytes)])
			written.Add(int64(n))
			rest = rest[n:]
			if err != nil {
				done <- outputError(err)
				return
			}
		}
		done <- nil
	}()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		s.buf = nil // still being written
		err = context.Cause(ctx)
	}
	if err == nil {
		return len(records), nil
	}
	n := 0
	for n < len(s.ends) && int64(s.ends[n]) <= written.Load() {
		n++
	}
	return n, err
}

// table prints rows of cells in columns, the first of them the heads. Bytes that
// are no UTF-8 are printed as they are; names with line ends or tabs, as -o json
// shows them, don't break rows.
func (a *app) table(rows [][]string) error {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			row[i] = harmless(cell)
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, row := range rows {
		gap := 0
		for i, cell := range row {
			if cell != "" {
				fmt.Fprintf(&b, "%*s%s", gap, "", cell)
				gap = -utf8.RuneCountInString(cell)
			}
			gap += widths[i] + 2
		}
		b.WriteByte('\n')
	}
	return a.printf("%s", b.String())
}

// pair is one line of `name value`.
type pair struct {
	name  string
	value any
}

func (a *app) pairs(pairs []pair) error {
	var b strings.Builder
	for _, p := range pairs {
		fmt.Fprintf(&b, "%s %v\n", p.name, p.value)
	}
	return a.printf("%s", b.String())
}

// shown is a name as it is printed: on a terminal without the control
// characters that could steer it.
func (a *app) shown(name string) string {
	f, ok := a.out.(*os.File)
	if !ok || !isTerminal(f) {
		return name
	}
	return harmless(name)
}

// harmless shows control characters as question marks, and other bytes as they
// are.
func harmless(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < 0x20 || c == 0x7f {
			b[i] = '?'
		}
	}
	return string(b)
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
