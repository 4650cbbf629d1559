package mount

import (
	"testing"
	"testing/synctest"
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

// What an OPEN has shown needs no notice, until the file is something else.
func TestShownUntilItChanges(t *testing.T) {
	now := gearsfs.Attr{Ino: 7, Mode: 0o100644, Version: 1}
	told := newTold(nil)
	noticed := func() (sent bool) {
		told.notice(7, func() (gearsfs.Attr, error) { return now, nil }, func() { sent = true })
		return sent
	}
	require.True(t, noticed())
	told.show(&now)
	require.False(t, noticed())
	require.False(t, noticed())
	now.Version = 2
	require.True(t, noticed())
	now.Version = 1
	require.True(t, noticed())
	told.show(&now)
	told.unshow()
	require.True(t, noticed())
}

// An OPEN does not show a file while the kernel is being told of it: the notice
// would come behind its answer.
func TestShowWaitsForTheNotice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := newTold(nil)
		shown := make(chan struct{})
		told.notice(7, nil, func() {
			told.show(&gearsfs.Attr{Ino: 8}) // is another file
			go func() {
				told.show(&gearsfs.Attr{Ino: 7})
				close(shown)
			}()
			synctest.Wait()
			select {
			case <-shown:
				t.Error("an OPEN has shown the file before its notice was sent")
			default:
			}
		})
		<-shown
	})
}
