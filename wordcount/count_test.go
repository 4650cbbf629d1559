package wordcount

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

// wc returns what the installed wc says of text in the C locale.
func wc(t *testing.T, text []byte) (c Counts) {
	t.Helper()
	cmd := exec.Command("wc", "-lwc")
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdin = bytes.NewReader(text)
	out, err := cmd.Output()
	require.NoError(t, err)
	_, err = fmt.Sscan(string(out), &c.Lines, &c.Words, &c.Bytes)
	require.NoError(t, err)
	return c
}

// texts are inputs that are hard for one reason or another.
func texts() map[string][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	random := func(n int, alphabet string) []byte {
		b := make([]byte, n)
		for i := range b {
			if alphabet == "" {
				b[i] = byte(rng.Uint32())
			} else {
				b[i] = alphabet[rng.IntN(len(alphabet))]
			}
		}
		return b
	}
	return map[string][]byte{
		"empty":               {},
		"one newline":         []byte("\n"),
		"no last newline":     []byte("a b\nc"),
		"only space":          []byte(" \t\v\f\r "),
		"mute bytes only":     []byte(" \x01\x80 \xff\n"),
		"mute bytes in words": []byte("a\x01b \x02c d\x03 \x04\x05\n"),
		"binary":              random(3<<20, ""),
		"few classes":         random(3<<20, "a\x01 \n"),
		"newlines":            bytes.Repeat([]byte("\n"), 100_000),
		"one word":            bytes.Repeat([]byte("x"), 3<<20),
		"one mute run":        append(bytes.Repeat([]byte("\x01"), 3<<20), 'x'),
		"one line of words":   random(3<<20, "abc    "),
		"long lines":          bytes.ReplaceAll(random(3<<20, "abc\x01 "), []byte("cab ab"), []byte("\n")),
		"lines at the edge": bytes.Join([][]byte{
			bytes.Repeat([]byte("y"), PieceBytes-1), bytes.Repeat([]byte("y"), PieceBytes),
			bytes.Repeat([]byte("z"), batchBytes), nil, []byte("end"),
		}, []byte("\n")),
	}
}

// split returns the records that text is cut into, with their own data.
func split(t *testing.T, in io.Reader, rule Rule, lines int) (records []gearsfs.NewRecord) {
	t.Helper()
	s := splitter{in: in, classes: rule.classes(), lines: lines}
	b := &batch{}
	for {
		err := s.next(b)
		if err == io.EOF {
			return records
		}
		require.NoError(t, err)
		require.NotEmpty(t, b.records)
		require.LessOrEqual(t, len(b.records), gearsfs.BatchRecordsMax)
		n := 0
		for _, r := range b.records {
			n += len(r.Data)
			records = append(records, gearsfs.NewRecord{Data: bytes.Clone(r.Data), Type: r.Type})
		}
		require.Equal(t, b.filled, n)
	}
}

func TestCountsAreThoseOfWc(t *testing.T) {
	rule := InstalledRule(context.Background())
	for name, text := range texts() {
		t.Run(name, func(t *testing.T) {
			want := wc(t, text)
			require.Equal(t, want, rule.classes().count(text, outside), "in one piece")

			for _, lines := range []int{0, 1, 3} {
				var sum Counts
				var whole []byte
				for _, r := range split(t, bytes.NewReader(text), rule, lines) {
					require.LessOrEqual(t, len(r.Data), PieceBytes)
					at, known := placeOf(r.Type)
					require.True(t, known)
					c := rule.classes().count(r.Data, at)
					if lines > 0 {
						require.LessOrEqual(t, c.Lines, uint64(lines))
					}
					sum = sum.Add(c)
					whole = append(whole, r.Data...)
				}
				require.Equal(t, want, sum, "in records of %d lines", lines)
				require.True(t, bytes.Equal(text, whole), "the records are the text")
			}
		})
	}
}

func TestRulesDifferOnlyInWhatBeginsAWord(t *testing.T) {
	text := []byte("a \x01 \x80\x81 b\x02 \x03c\n")
	require.Equal(t, Counts{1, 3, uint64(len(text))}, RulePrintable.classes().count(text, outside))
	require.Equal(t, Counts{1, 5, uint64(len(text))}, RuleAny.classes().count(text, outside))
	require.Nil(t, Rule("no such rule").classes())
}

func TestRecordsAreWholeLines(t *testing.T) {
	for lines, want := range map[int][]string{
		0: {"one\n\ntwo words\nlast"},
		1: {"one\n", "\n", "two words\n", "last"},
		3: {"one\n\ntwo words\n", "last"},
	} {
		got := split(t, iotest.OneByteReader(strings.NewReader("one\n\ntwo words\nlast")), RulePrintable, lines)
		require.Len(t, got, len(want))
		for i, r := range got {
			require.Equal(t, want[i], string(r.Data))
			require.Equal(t, typeLines, r.Type)
		}
	}
}

// A word that is cut must be longer than what --top lists, so each word of the
// list is in one record as a whole.
func TestOnlyLongWordsAreCut(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var text []byte
	want := map[string]uint64{}
	for len(text) < 4<<20 {
		n := rng.IntN(40)
		if rng.IntN(50) == 0 {
			n = WordBytesMax - 2 + rng.IntN(5)
		}
		word := bytes.Repeat([]byte{byte('a' + rng.IntN(26))}, n)
		if n > 0 && n <= WordBytesMax {
			want[string(word)]++
		}
		text = append(append(text, word...), ' ')
	}
	var got wordMap
	cut := 0
	for _, r := range split(t, bytes.NewReader(text), RulePrintable, 0) {
		at, _ := placeOf(r.Type)
		if at != outside {
			cut++
		}
		printableClasses.countWords(&got, r.Data, at)
	}
	require.Equal(t, want, asMap(got.all))
	t.Logf("%d words were cut", cut)
}

func asMap(all []Frequency) map[string]uint64 {
	m := make(map[string]uint64, len(all))
	for _, f := range all {
		m[f.Word] += f.Count
	}
	return m
}

func TestAReadErrorEndsTheSplitting(t *testing.T) {
	s := splitter{in: iotest.ErrReader(io.ErrClosedPipe), classes: printableClasses}
	require.ErrorIs(t, s.next(&batch{}), io.ErrClosedPipe)
}

func TestTop(t *testing.T) {
	var m wordMap
	for range 3 {
		m.add([]byte("b"), 1)
		m.add([]byte("a"), 1)
	}
	m.add([]byte("c"), 7)
	m.add([]byte("\xff"), 3)
	m.add([]byte("d"), 1)
	require.Equal(t, []Frequency{{"c", 7}, {"a", 3}, {"b", 3}, {"\xff", 3}}, m.top(4))
	require.Equal(t, []Frequency{{"c", 7}, {"a", 3}}, m.top(2))
	require.Len(t, m.top(100), 5)
	require.Empty(t, m.top(0))
}

func BenchmarkCount(b *testing.B) {
	text := bytes.Repeat([]byte("It was the best of times, it was the worst of times\n"), 20_000)
	b.Run("figures", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		for b.Loop() {
			printableClasses.count(text, outside)
		}
	})
	b.Run("words", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		b.ReportAllocs()
		var words wordMap
		for b.Loop() {
			words.clear()
			printableClasses.countWords(&words, text, outside)
		}
	})
}
