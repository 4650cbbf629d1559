package wordcount

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strings"
)

// Counts are the figures of wc -lwc: newlines, words and bytes.
type Counts struct {
	Lines, Words, Bytes uint64
}

// Add returns the sum of c and d.
func (c Counts) Add(d Counts) Counts {
	return Counts{c.Lines + d.Lines, c.Words + d.Words, c.Bytes + d.Bytes}
}

// Rule says which bytes make a word. White space is always that of the C
// locale: space, \t, \n, \v, \f and \r. GNU wc changed in version 9.5 what else
// it needs, and the figures of binary data with it.
type Rule string

const (
	// RulePrintable is that of GNU wc before 9.5: a word is a run of bytes that
	// are not white space, of which one at least is printable ASCII.
	RulePrintable Rule = "printable"
	// RuleAny is that of POSIX and of GNU wc from 9.5 on: a word is a run of
	// bytes that are not white space.
	RuleAny Rule = "any"
)

// InstalledRule asks the wc of this machine which rule it follows, so that the
// figures are the same as its. Where there is none, it is RulePrintable.
func InstalledRule(ctx context.Context) Rule {
	wc := exec.CommandContext(ctx, "wc", "-w")
	wc.Env = append(os.Environ(), "LC_ALL=C")
	wc.Stdin = strings.NewReader("\x01\n")
	if out, err := wc.Output(); err == nil && strings.TrimSpace(string(out)) == "1" {
		return RuleAny
	}
	return RulePrintable
}

// A class says what a byte does to the state "inside a word": the state is
// ANDed with the bit keeps, then ORed with the bit begins.
type class uint8

const (
	space  class = 0
	keeps  class = 1 // part of a run, but begins no word by itself
	begins class = 2
)

type classes [256]class

var printableClasses, anyClasses = makeClasses(0x21, 0x7e), makeClasses(0, 0xff)

// makeClasses returns the classes where bytes from lo to hi begin a word.
func makeClasses(lo, hi int) *classes {
	var t classes
	for b := range t {
		t[b] = keeps
		if lo <= b && b <= hi {
			t[b] |= begins
		}
	}
	for _, b := range " \t\n\v\f\r" {
		t[b] = space
	}
	return &t
}

// classes returns the rule's table, nil for an unknown rule.
func (r Rule) classes() *classes {
	switch r {
	case RulePrintable:
		return printableClasses
	case RuleAny:
		return anyClasses
	}
	return nil
}

// A place says what stands in front of a piece of text.
type place uint8

const (
	outside place = iota // white space, or nothing
	inRun                // a run of bytes none of which began a word yet
	inWord
)

// end returns the place behind data, where p is the one in front of it. It
// looks only at the last run of data.
func (t *classes) end(data []byte, p place) place {
	for i := len(data) - 1; i >= 0; i-- {
		switch c := t[data[i]]; {
		case c == space && i == len(data)-1:
			return outside
		case c == space:
			return inRun
		case c&begins != 0:
			return inWord
		}
	}
	if p == outside && len(data) > 0 {
		return inRun
	}
	return p
}

// count returns the figures of data, where p is the place in front of it. A
// word counts where it begins.
func (t *classes) count(data []byte, p place) Counts {
	var words uint64
	var in class
	if p == inWord {
		in = 1
	}
	for _, b := range data {
		c := t[b]
		now := in&c | c>>1
		words += uint64(now &^ in)
		in = now
	}
	return Counts{Lines: uint64(bytes.Count(data, newline)), Words: words, Bytes: uint64(len(data))}
}

var newline = []byte{'\n'}

// countWords adds the words of data to words, but for those of more than
// WordBytesMax bytes and, where p is not outside, for the run that data begins in.
func (t *classes) countWords(words *wordMap, data []byte, p place) {
	i := 0
	if p != outside {
		for i < len(data) && t[data[i]] != space {
			i++
		}
	}
	for i < len(data) {
		for i < len(data) && t[data[i]] == space {
			i++
		}
		begin, all := i, space
		for i < len(data) && t[data[i]] != space {
			all |= t[data[i]]
			i++
		}
		if all&begins != 0 && i-begin <= WordBytesMax {
			words.add(data[begin:i], 1)
		}
	}
}
