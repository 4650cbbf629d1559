package gearsfs

import (
	"strings"
	"unicode/utf8"
)

// Key names a stream within its file: 1 to KeyBytesMax bytes without '/', ',',
// NUL and other control characters, and neither "." nor "..".
type Key string

// DataKey is the stream whose records, concatenated, are the bytes of the file
// that POSIX sees.
const DataKey Key = "data"

// Limits on what one name, key, record or file may be.
const (
	KeyBytesMax     = 250
	NameBytesMax    = 255
	PathBytesMax    = 4096
	SymlinkBytesMax = 4095
	XattrBytesMax   = 64 << 10
	XattrNameMax    = 255
	RecordBytesMax  = 16 << 20

	// BatchBytesMax and BatchRecordsMax bound the records of one put or one
	// take, so that a command and its answer fit a frame.
	BatchBytesMax   = 16 << 20
	BatchRecordsMax = 16384

	// FileBytesMax is the largest offset that a file may reach.
	FileBytesMax = 1<<63 - 1
)

// Check returns ErrKey, with the reason, where k is not a key.
func (k Key) Check() error {
	switch {
	case k == "":
		return ErrKey.Because("a key must not be empty")
	case len(k) > KeyBytesMax:
		return ErrKey.Because("a key has at most 250 bytes")
	case k == "." || k == "..":
		return ErrKey.Because("a key must not be %q", string(k))
	}
	if i := strings.IndexFunc(string(k), badInKey); i >= 0 {
		r, _ := utf8.DecodeRuneInString(string(k[i:]))
		return ErrKey.Because("a key must not contain %q", r)
	}
	return nil
}

func badInKey(r rune) bool { return r == '/' || r == ',' || r < 0x20 || r == 0x7f }

// CheckName returns ErrInvalid or ErrNameTooLong where name can't be a
// directory entry.
func CheckName(name string) error {
	switch {
	case name == "" || name == "." || name == "..":
		return ErrInvalid.Because("%q is not a name", name)
	case len(name) > NameBytesMax:
		return ErrNameTooLong
	case strings.ContainsAny(name, "/\x00"):
		return ErrInvalid.Because("a name must not contain '/' or NUL")
	}
	return nil
}
