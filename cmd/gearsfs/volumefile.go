package main

import (
	"context"
	"io"

	"github.com/gearsfs/gearsfs"
	"golang.org/x/sys/unix"
)

// volumeReadBytes is how much of a file is asked for at once.
const volumeReadBytes = 1 << 20

// volumeFile reads the bytes of a file in a volume, from the head that it had
// when it was opened on. It must be closed.
type volumeFile struct {
	target
	ctx  context.Context // of the command, which the file does not outlive
	ino  gearsfs.Ino
	size uint64
	pos  gearsfs.Pos
	rest []byte // read and not yet handed out by Read
}

var _ io.Reader = (*volumeFile)(nil)

// openVolumeFile returns gearsfs.ErrIsDir and ErrInvalid for what has no bytes.
func openVolumeFile(ctx context.Context, t target) (*volumeFile, error) {
	attr, err := t.Resolve(ctx, t.path, true)
	if err != nil {
		return nil, err
	}
	switch attr.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		return nil, gearsfs.ErrIsDir
	default:
		return nil, gearsfs.ErrInvalid.Because("not a regular file")
	}
	if attr, err = t.Open(ctx, attr.Ino); err != nil {
		return nil, err
	}
	return &volumeFile{target: t, ctx: ctx, ino: attr.Ino, size: attr.Size, pos: attr.Head}, nil
}

// next returns the bytes that follow, or io.EOF.
func (f *volumeFile) next() ([]byte, error) {
	data, err := f.target.Read(f.ctx, f.ino, f.pos, volumeReadBytes, nil)
	if err != nil {
		return nil, err
	}
	if len(data) == 0 {
		return nil, io.EOF
	}
	f.pos += gearsfs.Pos(len(data))
	return data, nil
}

// Read implements io.Reader.
func (f *volumeFile) Read(p []byte) (int, error) {
	if len(f.rest) == 0 {
		var err error
		if f.rest, err = f.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, f.rest)
	f.rest = f.rest[n:]
	return n, nil
}

func (f *volumeFile) close() error {
	ctx, cancel := lingering(f.ctx)
	defer cancel()
	return f.Release(ctx, f.ino)
}
