package wordcount

import (
	"bytes"
	"cmp"
	"errors"
	"io"

	"github.com/gearsfs/gearsfs"
)

const (
	// PieceBytes is the longest record. A longer line travels in pieces, cut
	// behind white space where there is some near the end of the piece.
	PieceBytes = 128 << 10
	// WordBytesMax is the longest word that can be among the most frequent
	// ones; it is looked for behind so many bytes that a piece is cut, so that
	// only longer words are ever cut in two. Those are counted as any other.
	WordBytesMax = 32 << 10

	batchBytes = 512 << 10 // of text in one Put
)

// The types of the records of "lines".
const (
	typeLines      = "lines"     // whole lines, one or more; the last of all may lack its newline
	typePart       = "part"      // a piece of a long line; the next record continues it unless it ends in a newline
	typePartInRun  = "part+run"  // a piece that begins in a run of bytes that is no word so far
	typePartInWord = "part+word" // a piece that begins in a word
)

// placeOf returns the place in front of a record of that type.
func placeOf(recordType string) (p place, known bool) {
	switch recordType {
	case typeLines, typePart:
		return outside, true
	case typePartInRun:
		return inRun, true
	case typePartInWord:
		return inWord, true
	}
	return outside, false
}

func (p place) partType() string {
	switch p {
	case inRun:
		return typePartInRun
	case inWord:
		return typePartInWord
	}
	return typePart
}

// A batch is the records of one Put; their data are slices of text.
type batch struct {
	text    [batchBytes]byte
	filled  int
	records []gearsfs.NewRecord
}

// A splitter cuts a text into batches of lines and pieces of lines. It is not
// safe for concurrent use.
type splitter struct {
	in      io.Reader
	classes *classes
	lines   int    // in one record at most; 0 is as many as PieceBytes hold
	rest    []byte // read and not yet in a batch: in the last batch's text
	inLine  bool   // the last record was a piece whose line goes on
	at      place  // where inLine: behind that piece
	eof     bool
}

// next fills b, overwriting it, and returns io.EOF where nothing is left. The
// last batch may be the same b, but must not have been overwritten by others.
func (s *splitter) next(b *batch) error {
	n := copy(b.text[:], s.rest)
	if !s.eof {
		m, err := io.ReadFull(s.in, b.text[n:])
		n += m
		switch {
		case err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF):
			s.eof = true
		case err != nil:
			return err
		}
	}
	b.filled, b.records = n, b.records[:0]
	text := b.text[:n]
	for len(text) > 0 && len(b.records) < gearsfs.BatchRecordsMax {
		n := s.whole(text)
		switch {
		case n > 0 && !s.inLine && n <= PieceBytes:
			b.records = append(b.records, gearsfs.NewRecord{Data: text[:n], Type: typeLines})
		case n > 0 || s.eof || len(text) > PieceBytes:
			n = s.piece(b, text[:cmp.Or(n, len(text))])
		}
		if n == 0 {
			break // a line whose end is not read yet
		}
		text = text[n:]
	}
	s.rest = text
	b.filled -= len(text)
	if len(b.records) == 0 {
		return io.EOF
	}
	return nil
}

// whole returns the length of the lines at the front of text that go into one
// record: of the first alone where that is longer than a record or the end of
// a line in pieces, and 0 where its end is missing. At the end of the input
// its last line needs no newline.
func (s *splitter) whole(text []byte) int {
	if s.lines == 0 && !s.inLine {
		if s.eof && len(text) <= PieceBytes {
			return len(text)
		}
		if n := bytes.LastIndexByte(text[:min(len(text), PieceBytes)], '\n') + 1; n > 0 {
			return n
		}
	}
	n := 0
	for range max(1, s.lines) {
		i := bytes.IndexByte(text[n:], '\n') + 1
		if i == 0 && s.eof {
			i = len(text) - n
		}
		if i == 0 || n > 0 && n+i > PieceBytes {
			break
		}
		n += i
		if s.inLine {
			break
		}
	}
	return n
}

// piece adds a piece of a long line, or its end, and returns how long it is.
func (s *splitter) piece(b *batch, line []byte) int {
	if !s.inLine {
		s.at = outside
	}
	p := line
	if len(p) > PieceBytes {
		p = line[:PieceBytes]
		for i := PieceBytes; i > PieceBytes-WordBytesMax; i-- {
			if s.classes[line[i-1]] == space {
				p = line[:i]
				break
			}
		}
	}
	b.records = append(b.records, gearsfs.NewRecord{Data: p, Type: s.at.partType()})
	s.at = s.classes.end(p, s.at)
	s.inLine = p[len(p)-1] != '\n'
	return len(p)
}
