package main

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What killed workers have left goes; what is locked, is another thing or is
// behind a symbolic link stays.
func TestSweepRunDirs(t *testing.T) {
	temp, elsewhere := t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", temp)
	live, err := makeRunDir()
	require.NoError(t, err)
	left := filepath.Join(temp, runDirPrefix+"left")
	require.NoError(t, os.MkdirAll(filepath.Join(left, "in"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(left, "in", "0"), []byte("x"), 0o600))
	kept := filepath.Join(elsewhere, "kept")
	require.NoError(t, os.WriteFile(kept, nil, 0o600))
	link, file, other := filepath.Join(temp, runDirPrefix+"link"), filepath.Join(temp, runDirPrefix+"file"), filepath.Join(temp, "other")
	require.NoError(t, os.Symlink(elsewhere, link))
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Mkdir(other, 0o700))
	sweepRunDirs()
	assert.NoDirExists(t, left)
	for _, path := range []string{live.path, other} {
		assert.DirExists(t, path)
	}
	for _, path := range []string{kept, link, file} {
		assert.FileExists(t, path)
	}
	require.NoError(t, live.remove())
	assert.NoDirExists(t, live.path)
}

// However many begin and sweep at once, what one has made is there until it
// removes it.
func TestRunDirsAtOnce(t *testing.T) {
	tidyTemp(t)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 50 {
				sweepRunDirs()
				d, err := makeRunDir()
				if !assert.NoError(t, err) {
					return
				}
				sweepRunDirs()
				assert.NoError(t, os.WriteFile(filepath.Join(d.path, "x"), nil, 0o600))
				assert.NoError(t, d.remove())
			}
		})
	}
	all.Wait()
}
