package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/gearsfs/gearsfs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// drainIntake reads all records of in.
func drainIntake(t *testing.T, in io.Reader, end byte) ([]string, error) {
	t.Helper()
	k := newIntake(in, end)
	defer k.stop()
	var got []string
	for {
		records, err := k.next(t.Context())
		for _, r := range records {
			got = append(got, string(r.Data))
		}
		if err != nil {
			return got, err
		}
	}
}

func TestIntakeCutsRecords(t *testing.T) {
	for _, c := range []struct {
		in   string
		end  byte
		want []string
	}{
		{"", '\n', nil},
		{"\n", '\n', []string{""}},
		{"a\nb\n", '\n', []string{"a", "b"}},
		{"a\n\nb", '\n', []string{"a", "", "b"}},
		{"a\r\nb\n", '\n', []string{"a\r", "b"}},
		{"a\nb\x00c", 0, []string{"a\nb", "c"}},
		{strings.Repeat("x", 1<<20) + "\ny", '\n', []string{strings.Repeat("x", 1<<20), "y"}},
	} {
		for name, in := range map[string]io.Reader{
			"whole":     strings.NewReader(c.in),
			"by halves": iotest.HalfReader(strings.NewReader(c.in)),
			"data, EOF": iotest.DataErrReader(strings.NewReader(c.in)),
		} {
			got, err := drainIntake(t, in, c.end)
			assert.Equal(t, io.EOF, err)
			assert.Equal(t, c.want, got, "%s: %.20q", name, c.in)
		}
	}
}

func TestIntakeKeepsWhatCameBeforeAnError(t *testing.T) {
	broken := errors.New("broken")
	got, err := drainIntake(t, io.MultiReader(strings.NewReader("a\nb\nhalf"), iotest.ErrReader(broken)), '\n')
	assert.ErrorIs(t, err, broken)
	assert.Equal(t, []string{"a", "b"}, got, "a record that was cut off is none")
}

func TestIntakeRefusesTooLongRecords(t *testing.T) {
	long := bytes.Repeat([]byte("x"), gearsfs.RecordBytesMax+1)
	for name, in := range map[string]io.Reader{
		"ended":      io.MultiReader(strings.NewReader("a\n"), bytes.NewReader(long), strings.NewReader("\n")),
		"not ended":  io.MultiReader(strings.NewReader("a\n"), bytes.NewReader(long)),
		"by chance":  io.MultiReader(strings.NewReader("a\n"), bytes.NewReader(long[:len(long)-1]), strings.NewReader("xy\n")),
		"never ends": io.MultiReader(strings.NewReader("a\n"), endless{}),
	} {
		got, err := drainIntake(t, in, '\n')
		require.ErrorIs(t, err, gearsfs.ErrTooBig, name)
		assert.Contains(t, err.Error(), "record 2", name)
		assert.Equal(t, []string{"a"}, got, name)
	}
	just := io.MultiReader(bytes.NewReader(long[:gearsfs.RecordBytesMax]), strings.NewReader("\n"))
	got, err := drainIntake(t, just, '\n')
	assert.Equal(t, io.EOF, err)
	assert.Len(t, got, 1)
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return copy(p, strings.Repeat("x", len(p))), nil }

func TestIntakeReadsAheadWithinBounds(t *testing.T) {
	in := io.LimitReader(newlines{}, 10*intakeRecordsMax)
	k := newIntake(in, '\n')
	defer k.stop()
	var total int
	for {
		records, err := k.next(t.Context())
		assert.LessOrEqual(t, len(records), intakeRecordsMax)
		total += len(records)
		if err != nil {
			require.Equal(t, io.EOF, err)
			break
		}
	}
	assert.Equal(t, 10*intakeRecordsMax, total)
}

type newlines struct{}

func (newlines) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = '\n'
	}
	return len(p), nil
}

func TestIntakeWaitEndsWithItsContext(t *testing.T) {
	in, out := io.Pipe()
	defer out.Close()
	k := newIntake(in, '\n')
	defer k.stop()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("told to")
	cancel(why)
	_, err := k.next(ctx)
	assert.ErrorIs(t, err, why)
}
