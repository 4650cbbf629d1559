package tests

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// What a mount of one of three nodes holds is at the other mounts when it was
// closed or fsynced, whichever node dies.
func TestHeldOverNodes(t *testing.T) {
	t.Parallel()
	c := startMountedCluster(t, 3)
	leader := c.leader()
	here, there := c.nodes[(leader+1)%3], c.nodes[(leader+2)%3]
	t.Run("closed", func(t *testing.T) {
		for i := range coherenceRounds {
			f := heldFile{fmt.Sprint("closed ", i), 1 + i%7, 3000}
			require.NoError(t, f.write(here.mount))
			f.require(t, there.mount)
		}
		large := heldFile{"large", 40, 128 << 10}
		require.NoError(t, large.write(here.mount))
		large.require(t, there.mount)
	})
	t.Run("the leader dies", func(t *testing.T) {
		for kill := range size(2, 20) {
			requireHeldSurvives(t, c, kill)
		}
	})
	t.Run("the mount dies", func(t *testing.T) {
		f := heldFile{"fsynced", 3, 5000}
		file, err := os.Create(filepath.Join(here.mount, f.name))
		require.NoError(t, err)
		require.NoError(t, f.fill(file))
		require.NoError(t, file.Sync())
		here.kill()
		require.Error(t, file.Close(), "nobody serves it")
		detach(t, here.mount)
		f.require(t, there.mount)
		here.start()
	})
	c.verify()
}

// requireHeldSurvives writes files on a node's mount while the leader dies, which
// is another, and looks for all of them on the third's.
func requireHeldSurvives(t *testing.T, c *cluster, kill int) {
	t.Helper()
	leader := c.leader()
	here, there := c.nodes[(leader+1)%3], c.nodes[(leader+2)%3]
	const before, behind = 5, 20
	begun := make(chan struct{})
	var writing sync.WaitGroup
	var files []heldFile
	var failed error
	writing.Go(func() {
		for i := range before + behind {
			f := heldFile{fmt.Sprintf("kill %d file %d", kill, i), 4, 3000 + i%2*100_000}
			if failed = f.write(here.mount); failed != nil {
				failed = fmt.Errorf("%s: %w", f.name, failed)
				break
			}
			if files = append(files, f); i == before {
				close(begun)
			}
		}
		if len(files) <= before {
			close(begun)
		}
	})
	<-begun
	c.nodes[leader].kill()
	writing.Wait()
	require.NoError(t, failed)
	for _, f := range files {
		f.require(t, there.mount)
	}
	c.nodes[leader].start()
}

// heldFile is a file that is written in pieces, and then changed in its mode.
type heldFile struct {
	name          string
	pieces, bytes int
}

func (f heldFile) piece(i int) []byte { return bytes.Repeat([]byte{byte('a' + i%26)}, f.bytes) }

func (f heldFile) fill(file *os.File) error {
	for i := range f.pieces {
		if _, err := file.Write(f.piece(i)); err != nil {
			return err
		}
	}
	return file.Chmod(0o750)
}

func (f heldFile) write(mount string) error {
	file, err := os.Create(filepath.Join(mount, f.name))
	if err != nil {
		return err
	}
	if err := f.fill(file); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}

func (f heldFile) require(t *testing.T, mount string) {
	t.Helper()
	var want []byte
	for i := range f.pieces {
		want = append(want, f.piece(i)...)
	}
	file, err := os.Open(filepath.Join(mount, f.name))
	require.NoError(t, err)
	defer file.Close()
	info, err := file.Stat()
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o750), info.Mode(), f.name)
	require.EqualValues(t, len(want), info.Size(), f.name)
	got, err := os.ReadFile(file.Name())
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got), f.name)
}
