package mount_test

import (
	"context"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/gearsfs/gearsfs/dgm"
)

// interrupted is a Manager whose first Put is interrupted.
type interrupted struct {
	dgm.Manager
	done bool // puts come one after another
}

func (m *interrupted) Put(ctx context.Context, p dgm.Put) (dgm.PutResult, error) {
	if !m.done {
		m.done = true
		return dgm.PutResult{}, context.Canceled
	}
	return m.Manager.Put(ctx, p)
}

// A put that makes its file is interrupted as any other, though the file is
// made: the program puts again. The runtime of Go interrupts its threads often.
func TestInterruptedPutThatMakesItsFile(t *testing.T) {
	needRoot(t)
	vol := openVolume(t)
	m := &interrupted{Manager: session(t, vol)}
	f := fixture{vol: vol, dir: t.TempDir(), other: session(t, vol)}
	mountOn(t, m, f.dir, "")
	put, err := os.OpenFile(f.control("q", "k", "put"), os.O_WRONLY|os.O_APPEND, 0)
	require.NoError(t, err)
	_, err = put.WriteString("record") // goes on where it is interrupted
	require.NoError(t, err)
	require.NoError(t, put.Close())
	require.True(t, m.done)
	require.Equal(t, []string{"record"}, f.records(t, "/q", "k"))
}
