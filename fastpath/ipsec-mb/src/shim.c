// What src/linked.rs calls. The library's own interface is macros, and structs that differ from version to version:
// here the installed header speaks of them.

#include <intel-ipsec-mb.h>
#include <stdlib.h>

enum { KEY = 32, NONCE = 12, TAG = 16, CACHE_LINE = 64 };

int overmesh_mb_has_avx512(void) {
    return (imb_get_feature_flags() & IMB_CPUFLAGS_AVX512_T2) == IMB_CPUFLAGS_AVX512_T2;
}

IMB_MGR *overmesh_mb_manager(void) {
    IMB_MGR *manager = alloc_mb_mgr(0);
    if (manager) {
        init_mb_mgr_auto(manager, NULL);
    }
    return manager;
}

void *overmesh_mb_gcm_key(IMB_MGR *manager, const uint8_t key[KEY]) {
    void *schedule = NULL;
    if (posix_memalign(&schedule, CACHE_LINE, sizeof(struct gcm_key_data))) {
        return NULL;
    }
    IMB_AES256_GCM_PRE(manager, key, schedule);
    return schedule;
}

void overmesh_mb_gcm_drop(void *schedule) {
    imb_clear_mem(schedule, sizeof(struct gcm_key_data));
    free(schedule);
}

static void gcm(IMB_MGR *manager, const void *key, int seal, const uint8_t nonce[NONCE], const uint8_t *authenticated,
                size_t authenticated_len, uint8_t *text, size_t len, uint8_t tag[TAG]) {
    struct gcm_context_data context;
    if (seal) {
        IMB_AES256_GCM_ENC(manager, key, &context, text, text, len, nonce, authenticated, authenticated_len, tag, TAG);
    } else {
        IMB_AES256_GCM_DEC(manager, key, &context, text, text, len, nonce, authenticated, authenticated_len, tag, TAG);
    }
}

// By a job, which for one packet costs less than the calls of init, update and finalize.
static void chacha(IMB_MGR *manager, const void *key, int seal, const uint8_t nonce[NONCE], const uint8_t *authenticated,
                   size_t authenticated_len, uint8_t *text, size_t len, uint8_t tag[TAG]) {
    IMB_JOB *job = IMB_GET_NEXT_JOB(manager);
    job->cipher_mode = IMB_CIPHER_CHACHA20_POLY1305;
    job->hash_alg = IMB_AUTH_CHACHA20_POLY1305;
    job->cipher_direction = seal ? IMB_DIR_ENCRYPT : IMB_DIR_DECRYPT;
    job->chain_order = seal ? IMB_ORDER_CIPHER_HASH : IMB_ORDER_HASH_CIPHER;
    job->enc_keys = key;
    job->dec_keys = key;
    job->key_len_in_bytes = KEY;
    job->iv = nonce;
    job->iv_len_in_bytes = NONCE;
    job->u.CHACHA20_POLY1305.aad = authenticated;
    job->u.CHACHA20_POLY1305.aad_len_in_bytes = authenticated_len;
    job->src = text;
    job->dst = text;
    job->cipher_start_src_offset_in_bytes = 0;
    job->msg_len_to_cipher_in_bytes = len;
    job->hash_start_src_offset_in_bytes = 0;
    job->msg_len_to_hash_in_bytes = len;
    job->auth_tag_output = tag;
    job->auth_tag_output_len_in_bytes = TAG;
    job = IMB_SUBMIT_JOB_NOCHECK(manager);
    // This cipher is not collected into batches. If it ever were, no packet may go out unsealed for it.
    if (!job || job->status != IMB_STATUS_COMPLETED) {
        abort();
    }
}

// Encrypts or decrypts in place and writes the tag of the ciphertext. Of AES the key is a schedule.
void overmesh_mb_run(IMB_MGR *manager, int aes, const void *key, int seal, const uint8_t nonce[NONCE],
                     const uint8_t *authenticated, size_t authenticated_len, uint8_t *text, size_t len,
                     uint8_t tag[TAG]) {
    (aes ? gcm : chacha)(manager, key, seal, nonce, authenticated, authenticated_len, text, len, tag);
}
