// Package journal is a list of entries in shared memory: what a process has
// added is there for the next one however the first ends, without a system call
// for each. Only the machine's end loses it.
//
// The memory is a file without a name (memfd_create(2)):
//
//	0     magic, format
//	16    which of the two areas holds the entries (1 bit), how many bytes they are
//	4096  area 0, areaBytes
//	      area 1, areaBytes
//
// An entry is its length in 4 bytes, and its bytes. The word at 16 is written
// behind the entry and makes it one, so that a process that dies while it adds
// leaves nothing of it.
package journal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	magic       = 0x4c6e524a73724731
	format      = 1
	headerBytes = 4096
	areaBytes   = 1 << 30 // of address space; memory is used for what is written
)

// ErrFormat says that a file is no journal, or one of another version.
var ErrFormat = errors.New("not a journal of this version")

// ErrFull says that an entry has no room.
var ErrFull = errors.New("the journal is full")

// Log is a journal that is open. It is not safe for concurrent use.
type Log struct {
	file *os.File
	mem  []byte
	word *atomic.Uint64 // area<<63 | bytes
	area uint64
	used uint64
}

// Create makes an empty journal. The caller closes the file, which may be
// handed to other processes.
func Create(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := f.Truncate(headerBytes + 2*areaBytes); err != nil {
		f.Close()
		return nil, fmt.Errorf("journal: %w", err)
	}
	var header [16]byte
	binary.LittleEndian.PutUint64(header[0:], magic)
	binary.LittleEndian.PutUint64(header[8:], format)
	if _, err := f.WriteAt(header[:], 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("journal: %w", err)
	}
	return f, nil
}

// Open opens a journal; the file stays the caller's. Errors: ErrFormat.
func Open(f *os.File) (*Log, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, headerBytes+2*areaBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	l := &Log{file: f, mem: mem, word: (*atomic.Uint64)(unsafe.Pointer(&mem[16]))}
	word := l.word.Load()
	l.area, l.used = word>>63, word&^(1<<63)
	if binary.LittleEndian.Uint64(mem) != magic || binary.LittleEndian.Uint64(mem[8:]) != format || l.used > areaBytes {
		return nil, errors.Join(ErrFormat, l.Close())
	}
	return l, nil
}

// Close ends the use of the journal.
func (l *Log) Close() error {
	mem := l.mem
	l.mem, l.word = nil, nil
	return unix.Munmap(mem)
}

// Size is how many bytes the entries take.
func (l *Log) Size() int { return int(l.used) }

// Add adds an entry, made of parts. When it returns nil the entry is there.
// Errors: ErrFull, and then nothing has changed.
func (l *Log) Add(parts ...[]byte) error {
	used, err := l.put(l.area, l.used, parts)
	if err != nil {
		return err
	}
	l.used = used
	l.word.Store(l.area<<63 | used)
	return nil
}

func (l *Log) put(area, at uint64, parts [][]byte) (uint64, error) {
	var size uint64
	for _, p := range parts {
		size += uint64(len(p))
	}
	if size > areaBytes || at+4+size > areaBytes {
		return at, ErrFull
	}
	mem := l.bytes(area)[at:]
	binary.LittleEndian.PutUint32(mem, uint32(size))
	n := 4
	for _, p := range parts {
		n += copy(mem[n:], p)
	}
	return at + 4 + size, nil
}

func (l *Log) bytes(area uint64) []byte {
	return l.mem[headerBytes+area*areaBytes:][:areaBytes]
}

// Entries calls each with the entries in order until it fails. They belong to
// the journal, and are there until Replace.
func (l *Log) Entries(each func(entry []byte) error) error {
	mem := l.bytes(l.area)[:l.used]
	for len(mem) > 0 {
		if len(mem) < 4 || uint64(binary.LittleEndian.Uint32(mem)) > uint64(len(mem)-4) {
			return ErrFormat
		}
		n := 4 + int(binary.LittleEndian.Uint32(mem))
		if err := each(mem[4:n:n]); err != nil {
			return err
		}
		mem = mem[n:]
	}
	return nil
}

// Replace makes what write adds all that there is, at once. Where write fails,
// or there is no room, nothing has changed.
func (l *Log) Replace(write func(add func(parts ...[]byte)) error) error {
	other, used := 1-l.area, uint64(0)
	var full error
	err := write(func(parts ...[]byte) {
		if full == nil {
			used, full = l.put(other, used, parts)
		}
	})
	if err = errors.Join(err, full); err == nil {
		l.word.Store(other<<63 | used)
		l.area, l.used = other, used
		other = 1 - other
	}
	// What is in the area that is not used any more takes no memory.
	free := unix.Fallocate(int(l.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE,
		int64(headerBytes+other*areaBytes), areaBytes)
	return errors.Join(err, free)
}
