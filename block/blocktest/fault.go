package blocktest

import (
	"fmt"

	"github.com/gearsfs/gearsfs/block"
)

// OpKind is what an operation of a file system does.
type OpKind uint8

const (
	OpMakeDir OpKind = iota
	OpCreate
	OpOpen
	OpRemove
	OpList
	OpStat
	OpSyncDir
	OpSyncAll
	OpRead
	OpWrite
	OpSync
	OpPunch
	OpData
	OpClose
)

func (k OpKind) String() string {
	return [...]string{
		"make dir", "create", "open", "remove", "list", "stat", "sync dir", "sync all",
		"read", "write", "sync", "punch", "data", "close",
	}[k]
}

// Writes reports whether the operation changes anything, or has it survive.
func (k OpKind) Writes() bool {
	switch k {
	case OpOpen, OpList, OpStat, OpRead, OpData, OpClose:
		return false
	}
	return true
}

// Op is one operation that is about to be done.
type Op struct {
	Kind OpKind
	Path string
}

func (o Op) String() string { return fmt.Sprintf("%v %s", o.Kind, o.Path) }

// Faulty is fsys, of whose operations those fail for which before returns an
// error. A write that fails has done half of its work, a close all of it; of
// the others none is done.
func Faulty(fsys block.FS, before func(Op) error) block.FS { return &faulty{fsys, before} }

type faulty struct {
	fs     block.FS
	before func(Op) error
}

func (f *faulty) MakeDir(dir string) error {
	if err := f.before(Op{OpMakeDir, dir}); err != nil {
		return err
	}
	return f.fs.MakeDir(dir)
}

func (f *faulty) Create(path string) (block.File, error) {
	if err := f.before(Op{OpCreate, path}); err != nil {
		return nil, err
	}
	return f.file(path)(f.fs.Create(path))
}

func (f *faulty) Open(path string) (block.File, error) {
	if err := f.before(Op{OpOpen, path}); err != nil {
		return nil, err
	}
	return f.file(path)(f.fs.Open(path))
}

func (f *faulty) file(path string) func(block.File, error) (block.File, error) {
	return func(inner block.File, err error) (block.File, error) {
		if err != nil {
			return nil, err
		}
		return &faultyFile{inner, path, f.before}, nil
	}
}

func (f *faulty) Remove(path string) error {
	if err := f.before(Op{OpRemove, path}); err != nil {
		return err
	}
	return f.fs.Remove(path)
}

func (f *faulty) List(dir string) ([]string, error) {
	if err := f.before(Op{OpList, dir}); err != nil {
		return nil, err
	}
	return f.fs.List(dir)
}

func (f *faulty) Stat(path string) (block.FileInfo, error) {
	if err := f.before(Op{OpStat, path}); err != nil {
		return block.FileInfo{}, err
	}
	return f.fs.Stat(path)
}

func (f *faulty) SyncDir(dir string) error {
	if err := f.before(Op{OpSyncDir, dir}); err != nil {
		return err
	}
	return f.fs.SyncDir(dir)
}

func (f *faulty) SyncAll(dir string) error {
	if err := f.before(Op{OpSyncAll, dir}); err != nil {
		return err
	}
	return f.fs.SyncAll(dir)
}

type faultyFile struct {
	block.File
	path   string
	before func(Op) error
}

func (f *faultyFile) ReadAt(b []byte, off int64) (int, error) {
	if err := f.before(Op{OpRead, f.path}); err != nil {
		return 0, err
	}
	return f.File.ReadAt(b, off)
}

func (f *faultyFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.before(Op{OpWrite, f.path}); err != nil {
		if n, half := f.File.WriteAt(b[:len(b)/2], off); half != nil {
			return n, half
		}
		return len(b) / 2, err
	}
	return f.File.WriteAt(b, off)
}

func (f *faultyFile) Sync() error {
	if err := f.before(Op{OpSync, f.path}); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *faultyFile) Punch(off, n int64) error {
	if err := f.before(Op{OpPunch, f.path}); err != nil {
		return err
	}
	return f.File.Punch(off, n)
}

func (f *faultyFile) Data(off int64) (start, end int64, err error) {
	if err := f.before(Op{OpData, f.path}); err != nil {
		return 0, 0, err
	}
	return f.File.Data(off)
}

func (f *faultyFile) Close() error {
	err := f.before(Op{OpClose, f.path})
	if done := f.File.Close(); done != nil {
		return done
	}
	return err
}
