package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/gearsfs/gearsfs"
)

// cursor is a file that remembers up to which seq a stream was shown: one line,
// the seq in decimal. It is replaced as a whole, so it always says something.
type cursor struct {
	path  string
	seq   gearsfs.Seq
	known bool // the file was there
}

// openCursor reads a cursor; one that does not exist yet begins at the start.
// It fails where the cursor could not be moved, before anything is shown that
// would be shown again.
func openCursor(path string) (*cursor, error) {
	c := &cursor{path: path}
	f, err := c.create()
	if err != nil {
		return nil, fmt.Errorf("cursor: %w", err)
	}
	if err := errors.Join(f.Close(), os.Remove(f.Name())); err != nil {
		return nil, fmt.Errorf("cursor: %w", err)
	}
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return c, nil
	case err != nil:
		return nil, fmt.Errorf("cursor: %w", err)
	}
	line := strings.TrimSuffix(string(text), "\n")
	n, err := strconv.ParseUint(line, 10, 64)
	if err != nil || strconv.FormatUint(n, 10) != line {
		return nil, fmt.Errorf("cursor: %s does not hold a seq: name another file or remove it", path)
	}
	c.seq, c.known = gearsfs.Seq(n), true
	return c, nil
}

// move remembers seq; when it returns that is on disk.
func (c *cursor) move(seq gearsfs.Seq) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cursor: %w", err)
		}
	}()
	f, err := c.create()
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it is gone where all went well
	_, err = fmt.Fprintln(f, seq)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), c.path); err != nil {
		return err
	}
	c.seq, c.known = seq, true
	return syncDir(filepath.Clean(filepath.Dir(c.path)))
}

// create makes the file that is to replace the cursor's.
func (c *cursor) create() (*os.File, error) {
	dir, name := filepath.Split(c.path)
	f, err := os.CreateTemp(filepath.Clean(dir), "."+name+"-*")
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return nil, fmt.Errorf("%s can't be written: %w", c.path, e.Err)
	}
	return f, err
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
