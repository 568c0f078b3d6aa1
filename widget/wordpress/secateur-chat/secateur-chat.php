<?php
/**
 * Plugin Name: Secateur chat
 * Description: Puts the chat of a Secateur server on every page, and where the shortcode [secateur_chat] stands.
 * Version: 0.2.0
 * Requires at least: 6.3
 * Requires PHP: 7.4
 * License: Apache-2.0
 */

defined('ABSPATH') || exit;

const SECATEUR_CHAT_OPTION = 'secateur_chat';
/** Settings: name, label, and what the field says about it. */
const SECATEUR_CHAT_FIELDS = [
    'server' => ['Server', 'https://chat.example.org'],
    'skill' => ['Skill', 'The name of a skill whose `origins` name this site.'],
    'key' => ['Site key', 'Only where the skill has any.'],
    'title' => ['Title', 'Left out, the skill\'s.'],
    'accent' => ['Colour', '#0b5cad'],
    'label' => ['Label on the launcher', ''],
    'position' => ['Position', 'left or right'],
];

/** Returns the stored settings; each is a text, empty if there is none. */
function secateur_chat_settings(): array {
    return array_map('strval', wp_parse_args((array) get_option(SECATEUR_CHAT_OPTION, []), array_fill_keys([...array_keys(SECATEUR_CHAT_FIELDS), 'everywhere'], '')));
}

/** Keeps the known fields as texts; an address that is not http or https is refused with a message. */
function secateur_chat_sanitize($given): array {
    $settings = ['everywhere' => empty($given['everywhere']) ? '' : '1'];
    foreach (array_keys(SECATEUR_CHAT_FIELDS) as $name) {
        $settings[$name] = sanitize_text_field((string) ($given[$name] ?? ''));
    }
    $server = untrailingslashit(esc_url_raw($settings['server'], ['https', 'http']));
    if ($settings['server'] !== '' && !wp_http_validate_url($server) && !preg_match('#^https?://[\w.\[\]:-]+$#', $server)) {
        add_settings_error(SECATEUR_CHAT_OPTION, 'server', 'The server is an address such as https://chat.example.org.');
        $server = '';
    }
    return ['server' => $server] + $settings;
}

add_action('admin_init', function () {
    register_setting(SECATEUR_CHAT_OPTION, SECATEUR_CHAT_OPTION, ['type' => 'array', 'sanitize_callback' => 'secateur_chat_sanitize']);
});

add_action('admin_menu', function () {
    add_options_page('Secateur chat', 'Secateur chat', 'manage_options', 'secateur-chat', 'secateur_chat_page');
});

/** Shows the page with the settings. */
function secateur_chat_page(): void {
    $settings = secateur_chat_settings();
    echo '<div class="wrap"><h1>Secateur chat</h1><form action="options.php" method="post">';
    settings_fields(SECATEUR_CHAT_OPTION);
    echo '<table class="form-table" role="presentation">';
    foreach (SECATEUR_CHAT_FIELDS as $name => [$label, $hint]) {
        printf(
            '<tr><th scope="row"><label for="secateur-%1$s">%2$s</label></th><td><input class="regular-text" id="secateur-%1$s" name="%3$s[%1$s]" value="%4$s"><p class="description">%5$s</p></td></tr>',
            esc_attr($name), esc_html($label), esc_attr(SECATEUR_CHAT_OPTION), esc_attr($settings[$name]), esc_html($hint)
        );
    }
    printf(
        '<tr><th scope="row">Everywhere</th><td><label><input type="checkbox" name="%s[everywhere]" value="1"%s> A floating chat on every page</label></td></tr></table>',
        esc_attr(SECATEUR_CHAT_OPTION), checked($settings['everywhere'], '1', false)
    );
    submit_button();
    echo '</form></div>';
}

/** Queues the script once; `script_loader_tag` below gives it its options. */
function secateur_chat_enqueue(string $server): void {
    wp_enqueue_script('secateur-chat', $server . '/widget.js', [], null, ['strategy' => 'async', 'in_footer' => true]);
}

add_action('wp_enqueue_scripts', function () {
    $settings = secateur_chat_settings();
    if ($settings['server'] !== '' && $settings['skill'] !== '' && $settings['everywhere'] !== '') {
        secateur_chat_enqueue($settings['server']);
    }
});

add_filter('script_loader_tag', function (string $tag, string $handle): string {
    $settings = secateur_chat_settings();
    if ($handle !== 'secateur-chat' || $settings['everywhere'] === '') {
        return $tag;
    }
    $script = new WP_HTML_Tag_Processor($tag);
    while ($script->next_tag('script')) {
        foreach (['skill', 'key', 'title', 'accent', 'label', 'position'] as $name) {
            if ($settings[$name] !== '' && $script->get_attribute('src') !== null) {
                $script->set_attribute('data-' . $name, $settings[$name]);
            }
        }
    }
    return $script->get_updated_html();
}, 10, 2);

/** [secateur_chat skill="..." title="..."]: a chat in the page's flow, by default of the skill in the settings. */
add_shortcode('secateur_chat', function ($given): string {
    $settings = secateur_chat_settings();
    $options = shortcode_atts(['skill' => $settings['skill'], 'key' => $settings['key'], 'title' => $settings['title'], 'accent' => $settings['accent']], $given);
    if ($settings['server'] === '' || $options['skill'] === '') {
        return current_user_can('manage_options') ? '<p>Secateur chat: name the server and the skill in its settings.</p>' : '';
    }
    secateur_chat_enqueue($settings['server']);
    $attributes = '';
    foreach (array_filter($options) as $name => $value) {
        $attributes .= sprintf(' %s="%s"', $name, esc_attr($value));
    }
    return "<skill-chat$attributes></skill-chat>";
});
