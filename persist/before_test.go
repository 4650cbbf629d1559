package persist

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestBeside: what comes before a flush is synced while the log is, where it has
// something to sync, and in front of it where not; and its error is told.
func TestBeside(t *testing.T) {
	var none *beforeFlush
	mine, others := none.beside(func() error { return errors.ErrUnsupported })
	require.NoError(t, mine)
	require.ErrorIs(t, others, errors.ErrUnsupported)

	var b beforeFlush
	began, due := make(chan struct{}), true
	b.set(func() error {
		<-began // the other's call
		return errors.ErrUnsupported
	}, func() bool { return due })
	mine, others = b.beside(func() error { close(began); return nil })
	require.ErrorIs(t, mine, errors.ErrUnsupported)
	require.NoError(t, others)

	due = false
	mine, _ = b.beside(func() error { t.Error("behind an error"); return nil })
	require.ErrorIs(t, mine, errors.ErrUnsupported)

	calls := 0
	b.set(func() error { calls++; return nil }, func() bool { return due })
	_, others = b.beside(func() error { return errors.ErrUnsupported })
	require.ErrorIs(t, others, errors.ErrUnsupported)
	require.Equal(t, 1, calls)
	b.set(nil, nil)
	_, others = b.beside(func() error { return nil })
	require.NoError(t, others)
	require.Equal(t, 1, calls)
}
