;; A module that dies when it is told to, to show what Envoy does with a dead VM.
;; While it lives, it strips the metadata header from requests, as the filter does.
(module
  (import "env" "proxy_get_header_map_value"
    (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_remove_header_map_value"
    (func $remove (param i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 0) "x-kill")
  (data (i32.const 16) "x-envoy-peer-metadata")

  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_context_create") (param i32 i32))

  ;; What the host writes is never read: one place serves for all of it.
  (func (export "proxy_on_memory_allocate") (param i32) (result i32)
    (i32.const 65536))

  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (if (i32.eqz (call $get (i32.const 0) (i32.const 0) (i32.const 6) (i32.const 64) (i32.const 68)))
      (then unreachable))
    (drop (call $remove (i32.const 0) (i32.const 16) (i32.const 21)))
    (i32.const 0)))
