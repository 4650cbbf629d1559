package mount

import (
	"context"
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs"
)

func TestErrno(t *testing.T) {
	require.Zero(t, errno(nil))
	require.Equal(t, syscall.EINTR, errno(fmt.Errorf("take: %w", context.Canceled)))
	require.Equal(t, syscall.EIO, errno(fmt.Errorf("something else")))
	require.Equal(t, syscall.ENOENT, errno(fmt.Errorf("lookup: %w", gearsfs.ErrNotFound.Because("no f"))))
	require.Equal(t, syscall.EIO, errno(gearsfs.ErrMaybe), "nothing says that it was not done")
	for code, n := range errnos {
		require.NotEqual(t, syscall.ENOSYS, n, "%d: ENOSYS turns the operation off for the mount's life", code)
		require.Equal(t, n, errno(&gearsfs.Error{Code: code}))
	}
}
