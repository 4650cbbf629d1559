package journal_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs/mount/journal"
)

func create(t *testing.T) *os.File {
	t.Helper()
	f, err := journal.Create("test")
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func open(t *testing.T, f *os.File) *journal.Log {
	t.Helper()
	l, err := journal.Open(f)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	return l
}

func entries(t *testing.T, l *journal.Log) (all []string) {
	t.Helper()
	require.NoError(t, l.Entries(func(e []byte) error { all = append(all, string(e)); return nil }))
	return all
}

// What one added, another that opens the same memory finds, through any number
// of replacements.
func TestAddReplaceOpen(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	f := create(t)
	l := open(t, f)
	var want []string
	for i := range 2000 {
		switch {
		case rng.IntN(100) == 0:
			want = want[len(want)/2:]
			require.NoError(t, l.Replace(func(add func(...[]byte)) error {
				for _, w := range want {
					add([]byte(w))
				}
				return nil
			}))
		default:
			e := fmt.Sprint(i, string(bytes.Repeat([]byte{'x'}, rng.IntN(300))))
			cut := rng.IntN(len(e))
			require.NoError(t, l.Add([]byte(e[:cut]), []byte(e[cut:])))
			want = append(want, e)
		}
		if rng.IntN(50) == 0 {
			require.Equal(t, want, entries(t, open(t, f)))
		}
	}
	assert.Equal(t, want, entries(t, l))
}

func TestReplaceThatFailsChangesNothing(t *testing.T) {
	f := create(t)
	l := open(t, f)
	require.NoError(t, l.Add([]byte("kept")))
	require.ErrorIs(t, l.Replace(func(add func(...[]byte)) error {
		add([]byte("dropped"))
		return os.ErrInvalid
	}), os.ErrInvalid)
	assert.Equal(t, []string{"kept"}, entries(t, l))
	require.NoError(t, l.Replace(func(func(...[]byte)) error { return nil }))
	assert.Empty(t, entries(t, open(t, f)))
}

func TestFull(t *testing.T) {
	l := open(t, create(t))
	require.NoError(t, l.Add([]byte("first")))
	huge := make([]byte, 1<<20)
	parts := make([][]byte, 1024)
	for i := range parts {
		parts[i] = huge
	}
	require.ErrorIs(t, l.Add(parts...), journal.ErrFull)
	assert.Equal(t, []string{"first"}, entries(t, l))
}

func TestForeignFileIsRefused(t *testing.T) {
	f := create(t)
	_, err := f.WriteAt([]byte("something else"), 0)
	require.NoError(t, err)
	_, err = journal.Open(f)
	assert.ErrorIs(t, err, journal.ErrFormat)
}
