package wordcount

import (
	"bytes"
	"context"
	"testing"

	"github.com/stretchr/testify/require"
)

// Two nodes in one process count 64 MiB of text with lines of 52 bytes and of
// 1,000, in records of many lines and of one.
func BenchmarkTwoNodes(b *testing.B) {
	line := []byte("It was the best of times, it was the worst of times")
	lines52 := bytes.Repeat(append(line, '\n'), (64<<20)/52)
	lines1000 := bytes.Repeat(append(bytes.Repeat(line, 20)[:999], '\n'), (64<<20)/1000)
	for _, work := range []struct {
		name    string
		text    []byte
		options Options
	}{
		{"lines of 52", lines52, Options{}},
		{"lines of 52, top", lines52, Options{Top: 10}},
		{"lines of 52, each a record", lines52, Options{LinesPerRecord: 1}},
		{"lines of 1000, each a record", lines1000, Options{LinesPerRecord: 1}},
		{"one line", bytes.Repeat(append(line, ' '), (64<<20)/52), Options{}},
	} {
		b.Run(work.name, func(b *testing.B) {
			s, _, _ := joined(b)
			work.options.Rule = RulePrintable
			b.SetBytes(int64(len(work.text)))
			for b.Loop() {
				got, err := s.Count(context.Background(), bytes.NewReader(work.text), work.options)
				require.NoError(b, err)
				require.EqualValues(b, len(work.text), got.Bytes)
			}
			b.ReportMetric(float64(bytes.Count(work.text, newline))*float64(b.N)/b.Elapsed().Seconds(), "lines/s")
		})
	}
}
