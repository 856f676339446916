;; A module that traps when it is told to, to show what Envoy does with connections whose VM has failed: on bytes of a
;; client that begin with K, and on bytes of a server that begin with U.
(module
  (import "env" "proxy_get_buffer_bytes"
    (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)

  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_context_create") (param i32 i32))

  ;; What the host writes is one byte at most that is read at once: one place serves for all of it.
  (func (export "proxy_on_memory_allocate") (param i32) (result i32)
    (i32.const 65536))

  (func (export "proxy_on_new_connection") (param i32) (result i32)
    (i32.const 0))

  ;; The first byte of a buffer, 0 if there is none.
  (func $first (param $buffer i32) (result i32)
    (if (call $get (local.get $buffer) (i32.const 0) (i32.const 1) (i32.const 64) (i32.const 68))
      (then (return (i32.const 0))))
    (i32.load8_u (i32.load (i32.const 64))))

  (func (export "proxy_on_downstream_data") (param i32 i32 i32) (result i32)
    (if (i32.eq (call $first (i32.const 2)) (i32.const 0x4b))
      (then unreachable))
    (i32.const 0))

  (func (export "proxy_on_upstream_data") (param i32 i32 i32) (result i32)
    (if (i32.eq (call $first (i32.const 3)) (i32.const 0x55))
      (then unreachable))
    (i32.const 0)))
