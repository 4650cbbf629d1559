package mount

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

// What the kernel was told last it need not believe in, where it was told something
// else before: it takes up one of two answers and ignores the other.
func TestToldOtherwiseBefore(t *testing.T) {
	file := func(version uint64) *gearsfs.Attr {
		return &gearsfs.Attr{Ino: 7, Mode: 0o100644, Version: version, Ctime: time.Unix(int64(version), 0)}
	}
	several := true
	told := newTold(func() bool { return several })
	told.note(file(1))
	require.False(t, told.older(file(1)))
	told.note(file(1))
	require.False(t, told.older(file(1)))
	told.note(file(2))
	require.True(t, told.older(file(2)))
	told.note(file(2))
	require.True(t, told.older(file(2)))
	several = false
	require.False(t, told.older(file(2)))
	told.dropped(file(2))
	several = true
	require.False(t, told.older(file(2)))
	told.note(file(2))
	require.False(t, told.older(file(2)))
	require.True(t, told.older(file(3)))
	told.forget(7)
	told.dropped(file(3))
	require.True(t, told.older(file(3)))
}

// What an OPEN has shown is in doubt as soon as the file is something else.
func TestShownUntilItChanges(t *testing.T) {
	a := &gearsfs.Attr{Ino: 7, Mode: 0o100644, Version: 1}
	told := newTold(nil)
	require.False(t, told.shows(7))
	told.show(a)
	require.True(t, told.shows(7))
	require.True(t, told.showed(a))
	require.True(t, told.showed(a))
	require.False(t, told.showed(&gearsfs.Attr{Ino: 7, Mode: 0o100644, Version: 2}))
	require.False(t, told.shows(7))
	require.False(t, told.showed(a))
	told.show(a)
	told.unshow()
	require.False(t, told.shows(7))
}
